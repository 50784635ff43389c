#define ONEPASS_ISA avx2
#include "attention/cpu/flash_tile.inl"
