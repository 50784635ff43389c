#include "attention/cuda/portable/kernels.cuh"

ONEPASS_PORTABLE_KERNELS(96, 96)
