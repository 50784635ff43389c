#define ONEPASS_ISA portable
#include "kernels/cpu/rows.inl"
