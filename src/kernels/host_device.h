// Marks what a GPU's code may call too; nothing to a compiler of plain C++.
#pragma once

#ifdef __CUDACC__
#define ONEPASS_HOST_DEVICE __host__ __device__
#else
#define ONEPASS_HOST_DEVICE
#endif
