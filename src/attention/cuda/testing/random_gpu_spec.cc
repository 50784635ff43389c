#include "attention/cuda/testing/random_gpu_spec.h"

#include <algorithm>

namespace onepass {
namespace {

constexpr int kTileEdges[] = {16, 32, 64, 80, 96, 112, 128, 160, 176, 192, 224, 256, 320, 384, 512};
constexpr int kGroups[] = {1, 2, 4, 5, 7, 8, 16};
constexpr int kPageSizes[] = {1, 2, 3, 4, 8, 16, 24, 32, 64, 128, 256};
constexpr int kSplitSizes[] = {64, 100, 128, 192, 256, 512};
constexpr int kSplits[] = {1, 2, 3, 8, 32};
constexpr int64_t kMaxProducts = 40'000'000;  // multiplications of the reference

int uniform(std::mt19937_64& rng, int low, int high) { return low + static_cast<int>(rng() % (high - low + 1)); }
bool one_in(std::mt19937_64& rng, int n) { return rng() % n == 0; }

template <size_t N>
int pick(std::mt19937_64& rng, const int (&choices)[N]) {
  return choices[rng() % N];
}

void choose_dimensions(std::mt19937_64& rng, AttentionSpec& spec) {
  constexpr int kHeadDims[] = {64, 64, 128, 128, 128, 256, 256, 80, 96, 192, 0};
  spec.head_dim = spec.head_dim_v = pick(rng, kHeadDims);
  if (spec.head_dim == 0) spec.head_dim = 192, spec.head_dim_v = 128;
  spec.num_heads_kv = uniform(rng, 1, 4);
  spec.num_heads = spec.num_heads_kv * pick(rng, kGroups);
  spec.page_size = one_in(rng, 4) ? 0 : pick(rng, kPageSizes);
  constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  spec.q_dtype = spec.kv_dtype = spec.out_dtype = kDTypes[uniform(rng, 1, 2)];
  if (one_in(rng, 12)) spec.out_dtype = DType::kF32;
  if (one_in(rng, 12)) {
    spec.q_dtype = kDTypes[rng() % 3];
    spec.kv_dtype = kDTypes[rng() % 3];
    spec.out_dtype = kDTypes[rng() % 3];
  }
}

int random_length(std::mt19937_64& rng, bool may_be_long) {
  switch (rng() % 8) {
    case 0:
      return uniform(rng, 0, 1);
    case 1:
      return uniform(rng, 0, 600);
    case 2:
      return may_be_long ? uniform(rng, 600, 5000) : uniform(rng, 0, 600);
    default:
      return pick(rng, kTileEdges) * (one_in(rng, 4) ? 2 : 1) + uniform(rng, -1, 1);
  }
}

void choose_lengths(std::mt19937_64& rng, AttentionSpec& spec) {
  const int batch = uniform(rng, 1, 6);
  enum Kind { kOneRow, kFewRows, kExtend, kPrefill, kMixed };
  constexpr int kKinds[] = {kOneRow, kOneRow, kFewRows, kFewRows, kExtend, kPrefill, kPrefill, kMixed};
  const int kind = pick(rng, kKinds);
  for (int b = 0; b < batch; ++b) {
    const int this_kind = kind == kMixed ? uniform(rng, kOneRow, kPrefill) : kind;
    const int keys = random_length(rng, this_kind == kOneRow || this_kind == kFewRows);
    int rows = keys;
    if (this_kind == kOneRow) rows = 1;
    if (this_kind == kFewRows) rows = uniform(rng, 1, 16);
    if (this_kind == kExtend) rows = std::min(keys, random_length(rng, false));
    if (one_in(rng, 20)) rows = 0;
    if (one_in(rng, 30)) rows = keys + 2;  // more queries than keys: never in serving, but defined
    spec.seqlens_q.push_back(rows);
    spec.seqlens_k.push_back(keys);
  }
}

void choose_options(std::mt19937_64& rng, AttentionSpec& spec) {
  spec.causal = !one_in(rng, 3);
  if (one_in(rng, 2)) spec.num_splits = pick(rng, kSplits);
  if (one_in(rng, 5)) spec.split_size = pick(rng, kSplitSizes);
  if (one_in(rng, 4)) spec.padding = 8 * uniform(rng, 1, 4);
  if (one_in(rng, 2)) return;
  if (one_in(rng, 3)) spec.window_left = uniform(rng, 0, 300);
  if (one_in(rng, 6)) spec.window_right = uniform(rng, 0, 300);
  if (one_in(rng, 6)) spec.attention_chunk = uniform(rng, 1, 300);
  if (one_in(rng, 4)) spec.softcap = static_cast<float>(uniform(rng, 1, 50));
  spec.sinks = one_in(rng, 4);
  spec.descales = one_in(rng, 8);
  if (one_in(rng, 4)) spec.score_deviation = 8.0f;
}

int64_t products(const AttentionSpec& spec) {
  int64_t pairs = 0;
  for (size_t b = 0; b < spec.seqlens_q.size(); ++b) pairs += int64_t{spec.seqlens_q[b]} * spec.seqlens_k[b];
  return pairs * spec.num_heads * (spec.head_dim + spec.head_dim_v);
}

}  // namespace

AttentionSpec random_gpu_spec(std::mt19937_64& rng) {
  AttentionSpec spec;
  spec.seed = rng();
  choose_dimensions(rng, spec);
  choose_lengths(rng, spec);
  choose_options(rng, spec);
  while (products(spec) > kMaxProducts) {
    if (spec.num_heads_kv > 1) {
      spec.num_heads -= spec.num_heads / spec.num_heads_kv;
      --spec.num_heads_kv;
    } else if (spec.seqlens_q.size() > 1) {
      spec.seqlens_q.pop_back();
      spec.seqlens_k.pop_back();
    } else if (spec.num_heads > 1) {
      spec.num_heads = (spec.num_heads + 1) / 2;
    } else {
      spec.seqlens_q[0] /= 2;
    }
  }
  return spec;
}

Status kernel_supports(const CudaAttentionKernel& kernel, const AttentionSpec& spec, const GpuInfo& gpu) {
  AttentionParams p = attention_layout(spec);
  alignas(256) static constexpr std::byte kNothing[256] = {};
  p.q = p.k = p.v = kNothing;
  p.out = const_cast<std::byte*>(kNothing);
  p.softmax_lse = static_cast<float*>(p.out);
  p.cu_seqlens_q = p.cache_seqlens = reinterpret_cast<const int32_t*>(kNothing);
  if (spec.page_size > 0) {
    p.page_table = p.cu_seqlens_q;
  } else {
    p.cu_seqlens_k = p.cu_seqlens_q;
  }
  if (spec.sinks) p.sinks = p.softmax_lse;
  if (spec.descales) p.q_descale = p.k_descale = p.v_descale = p.softmax_lse;
  return kernel.supports(p, gpu);
}

}  // namespace onepass
