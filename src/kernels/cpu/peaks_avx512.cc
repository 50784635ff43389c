#define ONEPASS_ISA avx512
#include "kernels/cpu/peaks.inl"
