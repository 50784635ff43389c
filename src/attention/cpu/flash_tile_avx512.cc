#define ONEPASS_ISA avx512
#include "attention/cpu/flash_tile.inl"
