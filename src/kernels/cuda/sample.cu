// A cluster of thread blocks for each row, a slice of its logits in each block's shared memory: the logits are read
// once, and what the blocks tell each other goes through distributed shared memory.
#include "kernels/cuda/sample.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/cuda/sample_draw.cuh"
#include "kernels/cuda/sample_list.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/cuda/sample_slice.cuh"
#include "kernels/philox.h"

namespace onepass {
namespace sampling {
namespace {

struct Peak {
  float max;    // the largest logit
  int token;    // of the smallest id that has it; -1: no logit is a number above -inf
  float own;    // the largest of this thread's, or -inf
  float least;  // the smallest `own` above -inf
};

// Numbers whose larger is of the larger logit or, where two are the same, the smaller id; 0 where there is none.
__device__ uint64_t rank_of(float logit, int token) {
  return token < 0 ? 0 : uint64_t{ordered_bits(logit)} << 32 | ~static_cast<uint32_t>(token);
}
__device__ int token_of(uint64_t rank) { return rank == 0 ? -1 : static_cast<int>(~static_cast<uint32_t>(rank)); }
__device__ float logit_of(uint64_t rank) {
  return rank == 0 ? kMinusInfinity : from_ordered_bits(static_cast<uint32_t>(rank >> 32));
}
__device__ uint64_t largest_of_warp(uint64_t rank) {
  const uint32_t high = static_cast<uint32_t>(rank >> 32), best = __reduce_max_sync(~0u, high);
  return uint64_t{best} << 32 | __reduce_max_sync(~0u, high == best ? static_cast<uint32_t>(rank) : 0);
}
__device__ uint64_t largest(const Team& team, const ulonglong2* slots) {
  uint64_t best = 0;
  team.for_each_slot([&](int i) { best = slots[i].x > best ? slots[i].x : best; });
  return largest_of_warp(best);
}

// The rank of this thread's largest.
template <bool kArriving, bool kInShared>
__device__ uint64_t find_own(const Slice<kInShared>& slice) {
  float own = kMinusInfinity;
  int token = -1;
  const auto visit = [&](float logit, int i) {
    if (logit > own) own = logit, token = i;
  };
  if constexpr (kArriving) {
    slice.for_each_arriving(visit);
  } else {
    slice.for_each(visit);
  }
  return rank_of(own, token);
}

template <bool kArriving, bool kInShared>
__device__ Peak find_peak(Team& team, const Slice<kInShared>& slice) {
  const uint64_t own = find_own<kArriving>(slice);
  uint32_t least = __reduce_min_sync(~0u, own == 0 ? ~0u : static_cast<uint32_t>(own >> 32));
  const ulonglong2* slots = team.tell(largest_of_warp(own), least);
  team.for_each_slot([&](int i) { least = min(least, static_cast<uint32_t>(slots[i].y)); });
  least = __reduce_min_sync(~0u, least);
  const uint64_t best = largest(team, slots);
  return {logit_of(best), token_of(best), logit_of(own), from_ordered_bits(least)};
}

// For a row that wants its largest logit and nothing else: its rank, in the first block.
template <bool kInShared>
__device__ uint64_t find_peak_alone(Team& team, const Slice<kInShared>& slice, const float* next) {
  const uint64_t own = find_own<true>(slice);
  if (next != nullptr) slice.start_load(next);
  const ulonglong2* slots = team.tell_first(largest_of_warp(own));
  return team.is_first_block() ? largest(team, slots) : 0;
}

// As the host rounds it: no fused multiply-add.
__device__ float adjust(const SampleRow& row, LogitAdjustment a, bool is_last, float logit) {
  if (is_last) ++a.count, a.is_repeated = 1;
  logit = __fadd_rn(logit, a.bias);
  if (a.is_repeated && row.repetition_penalty != 1.0f) {
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty) : __fmul_rn(logit, row.repetition_penalty);
  }
  if (a.count > 0) {
    const float penalty = __fmul_rn(row.frequency_penalty, static_cast<float>(a.count));
    logit = __fsub_rn(logit, __fadd_rn(row.presence_penalty, penalty));
  }
  return a.is_banned ? kMinusInfinity : logit;
}
// The logit that became `adjusted`, but for rounding.
__device__ double undo(const SampleRow& row, LogitAdjustment a, bool is_last, double adjusted) {
  if (is_last) ++a.count, a.is_repeated = 1;
  if (a.count > 0) {
    const float penalty = __fmul_rn(row.frequency_penalty, static_cast<float>(a.count));
    adjusted += __fadd_rn(row.presence_penalty, penalty);
  }
  if (a.is_repeated) adjusted *= adjusted > 0 ? row.repetition_penalty : 1.0 / row.repetition_penalty;
  return adjusted - a.bias;
}

// f(adjustment, whether it is of the last token) in one thread of the block for each token of the row that has one.
template <typename F>
__device__ void for_each_adjustment(const Team& team, const SampleRow& row, int last_token, const F& f) {
  Scratch& s = team.scratch;
  if (threadIdx.x == 0) s.last_is_listed = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < row.num_adjustments; i += kThreads) {
    const LogitAdjustment a = row.adjustments[i];
    if (a.token == last_token) s.last_is_listed = 1;
    f(a, a.token == last_token);
  }
  __syncthreads();
  if (threadIdx.x == 0 && last_token >= 0 && !s.last_is_listed) f(LogitAdjustment{.token = last_token}, true);
  __syncthreads();
}

// The list of the tokens that pass `target` and all before them, in the order of their likelihood.
template <bool kInShared>
__device__ __noinline__ void list_by_selection(Team team, Slice<kInShared> slice, LogitOrder order, Target target) {
  const Selection last = select<false>(team, slice, order, target);
  clear_list(team);
  slice.for_each([&](float logit, int token) {
    if (order.key(logit) < last.key) add_to_list(team, order.key(logit), token);
  });
  for_each_of_key(team, slice, order, last.key, [&](uint32_t rank, int token) {
    if (rank <= last.rank) add_to_list(team, last.key, token);
  });
  finish_merge(team, merge_lists(team));
}

struct LogSum {
  double value;
  int turn;  // of Team
};

// Of the logits as they came: writes the likeliest and returns log(sum(exp(logits))). Leaves histogram and list clear.
template <bool kInShared>
__device__ __noinline__ LogSum write_top_logprobs(Team team, Slice<kInShared> slice, const CudaSampleParams& p,
                                                  const SampleRow& row, Peak peak) {
  float mine = 0.0f;
  slice.for_each([&](float logit, int) {
    if (logit > kMinusInfinity) mine += exp2_fast((logit - peak.max) * 1.44269504f);
  });
  const int wanted = min(row.num_logprobs, p.vocab_size);
  const LogitOrder order{peak.max};
  const LogitBins bins(order, peak.least);
  if (wanted > 0) count_own<false>(team, order, bins, peak.own);
  const double normalizer = peak.max + log(team.sum(static_cast<double>(mine)));
  if (wanted <= 0) return {normalizer, team.turn};

  const Target target{true, static_cast<uint64_t>(wanted) - 1};
  list_bins(team, slice, order, bins, last_bin_needed<false>(team, target));
  const int merged = merge_lists(team);
  finish_merge(team, merged);
  if (merged < 0) list_by_selection(team, slice, order, target);
  if (team.is_first_block() && threadIdx.x < wanted) {
    // The logit itself may be adjusted already by another block that holds it in global memory.
    const uint64_t entry = team.scratch.sorted[threadIdx.x];
    p.top_logprobs[int64_t{row.result} * kMaxSampleTops + threadIdx.x] = {
        static_cast<int>(static_cast<uint32_t>(entry)),
        static_cast<float>(LogitOrder::logit(static_cast<uint32_t>(entry >> 32)) - normalizer)};
  }
  clear_histogram(team.scratch);
  clear_list(team);
  return {normalizer, team.turn};
}

// Begins to copy the logits `next`, unless that is null, into the slice where it is of no more use before the row is
// done, and says whether it has.
template <bool kInShared>
__device__ bool sample_row(Team& team, const Slice<kInShared>& slice, const CudaSampleParams& p, const SampleRow* from,
                           const float* logits, const float* next) {
  Scratch& s = team.scratch;
  const int slot = from->slot;
  const bool has_logprobs = from->num_logprobs >= 0;
  const bool has_penalties =
      from->repetition_penalty != 1.0f || from->presence_penalty != 0.0f || from->frequency_penalty != 0.0f;
  const bool is_adjusted = from->num_adjustments > 0 || (from->counts_last_token && has_penalties);
  const bool is_greedy = from->temperature == 0.0f;
  const bool is_first_thread = team.is_first_block() && threadIdx.x == 0;
  double normalizer = 0.0;
  const auto write = [&](int token) {
    p.tokens[slot] = token < 0 ? 0 : token;
    SampledRow result{token};
    if (token >= 0 && has_logprobs) result.logprob = static_cast<float>(logits[token] - normalizer);
    p.results[from->result] = result;
  };
  if (slot < 0) {
    slice.for_each_arriving([](float, int) {});  // before another copy to the same place begins
    return false;
  }
  if (is_greedy && !is_adjusted && !has_logprobs) {
    const uint64_t best = find_peak_alone(team, slice, next);
    if (is_first_thread) write(best != 0 && isfinite(logit_of(best)) ? token_of(best) : -1);
    return next != nullptr;
  }

  __syncthreads();  // nobody is at the last row any more
  clear_histogram(s);
  if (threadIdx.x == 0) s.list_count = 0;
  if (threadIdx.x < sizeof(SampleRow) / 4) {
    reinterpret_cast<uint32_t*>(&s.row)[threadIdx.x] = reinterpret_cast<const uint32_t*>(from)[threadIdx.x];
  }
  Peak peak = find_peak<true>(team, slice);
  const SampleRow& row = s.row;  // since all have met
  const auto take = [&](int token) {
    write(token);
    if constexpr (!kInShared) {
      for (int rank = 0; rank < team.blocks; ++rank) *in_block(&s.token, rank) = token;
    }
  };
  if (peak.token < 0) {
    if (is_first_thread) take(-1);
    return false;
  }
  if (has_logprobs) {
    const LogSum sum = write_top_logprobs(team, slice, p, row, peak);
    normalizer = sum.value, team.turn = sum.turn;
  }

  int last_token = -1;
  if (is_adjusted) {
    if (row.counts_last_token) last_token = p.tokens[slot];
    for_each_adjustment(team, row, last_token, [&](const LogitAdjustment& a, bool is_last) {
      if (slice.holds(a.token)) slice.at(a.token) = adjust(row, a, is_last, slice.at(a.token));
    });
    peak = find_peak<false>(team, slice);
  }
  const bool is_good = peak.token >= 0 && isfinite(peak.max);
  bool is_released = false;
  if (!is_good || is_greedy) {
    if (is_first_thread) take(is_good ? peak.token : -1);
  } else {
    const Drawn drawn =
        draw_token(team, slice, WeightOrder(peak.max, row.temperature), peak.own, peak.least, p.vocab_size,
                   {row.top_k, row.top_p, row.min_p, philox_uniform(row.seed, row.draw)}, next);
    team.turn = drawn.turn, is_released = drawn.is_released;
    if (drawn.token >= 0) take(drawn.token);
  }
  if constexpr (!kInShared) {
    if (!is_good || !is_adjusted || !has_logprobs) return is_released;
    // take() found the adjusted logit.
    team.meet();
    for_each_adjustment(team, row, last_token, [&](const LogitAdjustment& a, bool is_last) {
      if (a.token == s.token && slice.holds(a.token)) {
        p.results[row.result].logprob = static_cast<float>(undo(row, a, is_last, logits[a.token]) - normalizer);
      }
    });
  }
  return is_released;
}

template <bool kInShared>
__global__ void __launch_bounds__(kThreads, 2) sample_kernel(const __grid_constant__ CudaSampleParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Team team{*reinterpret_cast<Scratch*>(memory)};
  let_next_kernel_start();
  team.arrive();
  const auto logits_of = [&](int row) { return p.logits + row * p.row_stride; };
  const auto slice_of = [&](int row) {
    float* const shared = reinterpret_cast<float*>(memory + sizeof(Scratch));
    return Slice<kInShared>(team, logits_of(row), p.vocab_size, p.row_stride, shared);
  };
  const int step = static_cast<int>(gridDim.x) / team.blocks;
  int row = static_cast<int>(blockIdx.x) / team.blocks;
  wait_for_earlier_kernels();
  slice_of(row).start_load(logits_of(row));
  team.wait();  // all blocks run, so their memory can be written
  for (; row < p.num_rows; row += step) {
    const Slice<kInShared> slice = slice_of(row);
    const float* const next = row + step < p.num_rows ? logits_of(row + step) : nullptr;
    const bool is_released = sample_row(team, slice, p, p.rows + row, logits_of(row), next);
    if (!is_released && next != nullptr) slice.start_load(next);
  }
  team.meet();  // what one writes to another is there before that one is gone
}

Status check(const CudaSampleParams& p, const SamplePlan& plan) {
  if (p.vocab_size <= 0) return invalid_argument("sample: vocab_size: expected at least 1, found ", p.vocab_size);
  if (p.num_rows < 0) return invalid_argument("sample: num_rows: expected at least 0, found ", p.num_rows);
  if (p.row_stride < p.vocab_size) {
    return invalid_argument("sample: row_stride: expected at least vocab_size = ", p.vocab_size, ", found ",
                            p.row_stride);
  }
  if (p.num_rows > 0 && (p.logits == nullptr || p.rows == nullptr || p.tokens == nullptr || p.results == nullptr)) {
    return invalid_argument("sample: logits, rows, tokens and results: expected addresses, found a null one");
  }
  if (plan.cluster != 1 && plan.cluster != 2 && plan.cluster != 4 && plan.cluster != 8) {
    return invalid_argument("sample: plan: cluster: expected 1, 2, 4 or 8, found ", plan.cluster);
  }
  return ok_status();
}

// How many rows the GPU can have in work at once.
template <typename Kernel>
StatusOr<int> resident_rows(Kernel kernel, const SamplePlan& plan, int shared_bytes) {
  int device = 0, multiprocessors = 0, blocks = 0, clusters = 0;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "sample"));
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "sample"));
  if (plan.cluster == 1) {
    ONEPASS_RETURN_IF_ERROR(
        cuda_status(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared_bytes), "sample"));
    return std::max(1, blocks * multiprocessors);
  }
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = plan.cluster, size.val.clusterDim.y = 1, size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.cluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &size;
  config.numAttrs = 1;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "sample"));
  return std::max(1, clusters);
}

template <bool kInShared>
Status launch(const CudaSampleParams& p, const SamplePlan& plan, CUstream_st* stream) {
  const auto kernel = sample_kernel<kInShared>;
  const auto bytes = static_cast<int>(sample_shared_bytes(p.vocab_size, plan, sizeof(Scratch)));
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "sample"));
  ONEPASS_ASSIGN_OR_RETURN(const int resident, resident_rows(kernel, plan, bytes));
  return launch_early("sample", kernel,
                      {.grid = dim3(static_cast<unsigned>(std::min(p.num_rows, resident) * plan.cluster)),
                       .threads = kThreads,
                       .shared_bytes = static_cast<size_t>(bytes),
                       .cluster = plan.cluster},
                      stream, p);
}

}  // namespace
}  // namespace sampling

Status run_sample_cuda(const CudaSampleParams& p, const SamplePlan& plan, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(sampling::check(p, plan));
  if (p.num_rows == 0) return ok_status();
  return plan.in_shared ? sampling::launch<true>(p, plan, stream) : sampling::launch<false>(p, plan, stream);
}

Status run_sample_cuda(const CudaSampleParams& p, CUstream_st* stream) {
  int device = 0, major = 0, shared_limit = 0;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "sample"));
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "sample"));
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "sample"));
  const int max_cluster = major >= 9 ? kSampleMaxCluster : 1;
  return run_sample_cuda(
      p, plan_sample(std::max(1, p.vocab_size), max_cluster, sizeof(sampling::Scratch), shared_limit), stream);
}

}  // namespace onepass
