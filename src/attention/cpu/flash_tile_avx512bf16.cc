#define ONEPASS_ISA avx512bf16
#include "attention/cpu/flash_tile.inl"
