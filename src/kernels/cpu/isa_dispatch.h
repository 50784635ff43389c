// The tables of isa_kernels.h for the instruction set of a stream.
#pragma once

#include "base/cpu_features.h"
#include "kernels/cpu/isa_kernels.h"

namespace onepass::cpu {

const LinearKernels& linear_kernels(CpuIsa isa);
const RowKernels& row_kernels(CpuIsa isa);
const PeakKernels& peak_kernels(CpuIsa isa);

}  // namespace onepass::cpu
