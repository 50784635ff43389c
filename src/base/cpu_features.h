// Which instruction set the kernels of this process use: chosen once at start, passed down in Stream.
#pragma once

#include <string_view>
#include <vector>

#include "base/status.h"

namespace onepass {

// In the order of preference; each one implies those before it.
enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view to_string(CpuIsa isa);

// "auto", "portable", "avx2", "avx512" or "avx512bf16"; an error names an unknown one or one that this machine lacks.
StatusOr<CpuIsa> parse_cpu_isa(std::string_view name);

// The best that this machine (processor and operating system) runs. kAvx2 also asks for FMA and F16C; kAvx512 for F,
// BW, DQ, VL.
CpuIsa best_cpu_isa();

// All that this machine runs, kPortable first. Tests compare them with each other.
std::vector<CpuIsa> supported_cpu_isas();

}  // namespace onepass
