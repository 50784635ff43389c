#define ONEPASS_ISA portable
#include "kernels/cpu/linear.inl"
