#define ONEPASS_ISA avx2
#include "kernels/cpu/rows.inl"
