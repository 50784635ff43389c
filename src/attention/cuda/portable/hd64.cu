#include "attention/cuda/portable/kernels.cuh"

ONEPASS_PORTABLE_KERNELS(64, 64)
