#define ONEPASS_ISA avx512bf16
#include "kernels/cpu/peaks.inl"
