// How rows of logits are shared among thread blocks when tokens are sampled on a GPU.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace onepass {

constexpr int kSampleThreads = 512;
constexpr int kSampleMaxCluster = 8;  // as many as every GPU with clusters takes
constexpr int kSamplePiece = 128;     // a warp's step: a float4 for each lane

struct SamplePlan {
  int cluster = 1;        // thread blocks that share a row: 1, 2, 4 or 8
  bool in_shared = true;  // each holds its slice of the logits in shared memory

  bool operator==(const SamplePlan&) const = default;
};

// Tokens of each block's slice but the last's, which has what is left.
ONEPASS_HOST_DEVICE constexpr int sample_slice_tokens(int vocab_size, int cluster) {
  return ((vocab_size + cluster - 1) / cluster + kSamplePiece - 1) / kSamplePiece * kSamplePiece;
}

// Of a block; `scratch_bytes` is what it needs beside its slice.
constexpr int64_t sample_shared_bytes(int vocab_size, const SamplePlan& plan, int64_t scratch_bytes) {
  return scratch_bytes + (plan.in_shared ? int64_t{4} * sample_slice_tokens(vocab_size, plan.cluster) : 0);
}

// `max_cluster` is 1 on GPUs without clusters. The choice does not depend on the number of rows: what a row's token is
// must not depend on its neighbours.
constexpr SamplePlan plan_sample(int vocab_size, int max_cluster, int64_t scratch_bytes, int64_t shared_limit) {
  SamplePlan plan;
  // Each thread of a block should have a float4 of its own.
  while (plan.cluster * 2 <= max_cluster && plan.cluster * 2 <= kSampleMaxCluster &&
         plan.cluster * 2 * kSampleThreads * 4 <= vocab_size) {
    plan.cluster *= 2;
  }
  plan.in_shared = sample_shared_bytes(vocab_size, plan, scratch_bytes) <= shared_limit;
  return plan;
}

}  // namespace onepass
