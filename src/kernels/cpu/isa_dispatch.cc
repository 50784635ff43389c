#include "kernels/cpu/isa_dispatch.h"

namespace onepass::cpu {

const LinearKernels& linear_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512Bf16:
      return avx512bf16::kLinearKernels;
    case CpuIsa::kAvx512:
      return avx512::kLinearKernels;
    case CpuIsa::kAvx2:
      return avx2::kLinearKernels;
    case CpuIsa::kPortable:
      break;
  }
  return portable::kLinearKernels;
}

const RowKernels& row_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512Bf16:
      return avx512bf16::kRowKernels;
    case CpuIsa::kAvx512:
      return avx512::kRowKernels;
    case CpuIsa::kAvx2:
      return avx2::kRowKernels;
    case CpuIsa::kPortable:
      break;
  }
  return portable::kRowKernels;
}

const PeakKernels& peak_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512Bf16:
      return avx512bf16::kPeakKernels;
    case CpuIsa::kAvx512:
      return avx512::kPeakKernels;
    case CpuIsa::kAvx2:
      return avx2::kPeakKernels;
    case CpuIsa::kPortable:
      break;
  }
  return portable::kPeakKernels;
}

}  // namespace onepass::cpu
