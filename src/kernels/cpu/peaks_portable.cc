#define ONEPASS_ISA portable
#include "kernels/cpu/peaks.inl"
