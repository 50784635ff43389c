#include "attention/cuda/portable/kernels.cuh"

ONEPASS_PORTABLE_KERNELS(192, 128)
