#include "base/cpu_features.h"

#include <cpuid.h>

namespace onepass {
namespace {

// By cpuid rather than __builtin_cpu_supports: clang 14 (clang-tidy) does not know the builtin's names of these two.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx512bf16() {
  constexpr unsigned kAvx512Bf16Bit = 1u << 5;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvx512Bf16Bit) != 0;
}

}  // namespace

std::string_view to_string(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
  }
  return "unknown";
}

CpuIsa best_cpu_isa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
    return CpuIsa::kPortable;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuIsa::kAvx2;
  }
  return has_avx512bf16() ? CpuIsa::kAvx512Bf16 : CpuIsa::kAvx512;
}

std::vector<CpuIsa> supported_cpu_isas() {
  std::vector<CpuIsa> isas;
  for (int isa = 0; isa <= static_cast<int>(best_cpu_isa()); ++isa) isas.push_back(static_cast<CpuIsa>(isa));
  return isas;
}

StatusOr<CpuIsa> parse_cpu_isa(std::string_view name) {
  if (name == "auto") return best_cpu_isa();
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (name != to_string(isa)) continue;
    if (isa > best_cpu_isa()) {
      return invalid_argument("instruction set ", name, ": this machine has ", to_string(best_cpu_isa()), " at best");
    }
    return isa;
  }
  return invalid_argument("instruction set: expected auto, portable, avx2, avx512 or avx512bf16, found \"", name, "\"");
}

}  // namespace onepass
