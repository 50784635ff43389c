// What this machine can do at best: the ceilings that benchmarks divide by.
#pragma once

#include "tensor/device.h"

namespace onepass {

// GB/s (10^9 bytes) that all threads of the stream read from memory together: 512 MiB, far more than the caches hold,
// best of several passes with software prefetch. 0 when the memory cannot be had.
double measure_dram_read_bandwidth(const Stream& stream);

// Seconds that all threads take to read `bytes` at `data`, a contiguous share each: the floor of a kernel that must
// read them, to be measured in turns with it where the machine's speed drifts.
double seconds_to_read(const void* data, int64_t bytes, const Stream& stream);

// GFLOP/s of independent fused multiply-adds in registers, on all threads, with the stream's instruction set.
double measure_fp32_fma_peak(const Stream& stream);

// The same of bf16 dot products; 0 where the stream's instruction set has none.
double measure_bf16_dot_peak(const Stream& stream);

}  // namespace onepass
