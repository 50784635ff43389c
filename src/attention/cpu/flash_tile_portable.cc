#define ONEPASS_ISA portable
#include "attention/cpu/flash_tile.inl"
