#define ONEPASS_ISA avx2
#include "kernels/cpu/peaks.inl"
