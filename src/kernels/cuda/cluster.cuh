// A thread block's place in its cluster; before sm_90 each block is one by itself.
#pragma once

namespace onepass {

__device__ inline int cluster_size() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(__clusterSizeInBlocks());
#else
  return 1;
#endif
}
__device__ inline int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(__clusterRelativeBlockRank());
#else
  return 0;
#endif
}

}  // namespace onepass
