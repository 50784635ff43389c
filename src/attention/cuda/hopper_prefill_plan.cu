// One thread block that turns the lengths of a batch into the tile list of hopper_prefill_plan.h: a counting sort of
// the tiles by chunk, then by length in 64 classes.
#include "attention/cuda/hopper_prefill_plan.h"

namespace onepass::hopper {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kClasses = 64;
constexpr int kBins = kMaxPrefillChunks * kClasses;

struct Shared {
  int64_t warp_sums[kWarps];
  int64_t chunk_keys[kMaxPrefillChunks];
  int longest;
  int bins[kBins];
  int32_t chunk_of_request[kThreads];  // of batches that fit; larger ones use the scratch memory
  int32_t tile_of_request[kThreads];
};

// Exclusive prefix sum over the thread block of `value`; `total` is everyone's sum.
__device__ int64_t block_scan(int64_t value, int64_t* warp_sums, int64_t& total) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int64_t sum = value;
  for (int d = 1; d < 32; d *= 2) {
    const int64_t before = __shfl_up_sync(0xFFFFFFFF, sum, d);
    if (lane >= d) sum += before;
  }
  __syncthreads();
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int64_t first = lane < warp ? warp_sums[lane] : 0;
  total = warp_sums[lane];
  for (int d = 16; d > 0; d /= 2) {
    first += __shfl_xor_sync(0xFFFFFFFF, first, d);
    total += __shfl_xor_sync(0xFFFFFFFF, total, d);
  }
  return first + sum - value;
}

// A chunk is as much as fits in the cache or as makes two tiles for each multiprocessor, whichever is less: reading of
// K and V from memory then spreads over the whole run, and the tiles are still many enough to be shared out evenly.
constexpr int64_t kChunkWeight = 1 << 20;
constexpr int kLastChunks = 2;

__device__ int tiles_of_request(const PrefillPlanArgs& args, int b) {
  return (args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b] + args.tile_rows - 1) / args.tile_rows;
}

__device__ int64_t request_weight(const PrefillPlanArgs& args, int b) {
  // In double precision, which is exact enough and much faster than 64-bit divisions.
  const double by_tiles = static_cast<double>(tiles_of_request(args, b)) * args.num_heads / (2 * args.workers);
  const double by_keys = static_cast<double>(args.cache_seqlens[b]) / static_cast<double>(args.cached_keys);
  return static_cast<int64_t>(max(by_tiles, by_keys) * kChunkWeight);
}

// Causal requests that have few queries and keys, and hardly more keys than queries, are bound by memory, and by what
// the halves of the L2 cache have to bring each other. A head's long tiles then read its keys from memory, its short
// ones from the cache: with an item of one of each, and chunks of half the size, both go on all the time. 16 heads of
// 32 x 512: 300 to 321 TFLOP/s, of 16 x 1,024: 437 to 447, of 8 x 2,048: 550 to 544.
__device__ bool bound_by_memory(const PrefillPlanArgs& args, int64_t total_keys) {
  const bool causal = args.mask.window_right >= 0 && args.mask.window_left < 0 && args.mask.chunk == 0;
  return causal && total_keys <= int64_t{1024} * args.batch && total_keys < 2 * int64_t{args.cu_seqlens_q[args.batch]};
}

// The last request that begins at or before the tile, and is not empty.
__device__ int request_of_tile(const int32_t* tile_of_request, int batch, int tile) {
  int low = 0;
  int high = batch;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tile_of_request[middle] <= tile ? low : high) = middle;
  }
  return low;
}

// As many KV heads as fit in the cache, and a divisor of their number, so that the last group is no smaller. But where
// all tiles of a request are as long, they had better be those of one head: they will read the same keys at the same
// time.
__device__ int group_heads(const PrefillPlanArgs& args, int64_t chunk_keys) {
  if (args.mask.window_right < 0 && args.mask.chunk == 0) return args.heads_per_kv;
  const int all = args.num_heads / args.heads_per_kv;
  int heads_kv = static_cast<int>(min(int64_t{all}, max(int64_t{1}, args.cached_keys / max(chunk_keys, int64_t{1}))));
  while (all % heads_kv != 0) --heads_kv;
  return heads_kv * args.heads_per_kv;
}

__global__ __launch_bounds__(kThreads, 1) void plan_kernel(PrefillPlanArgs args) {
  __shared__ Shared shared;
  int32_t* chunk_of_request = args.batch <= kThreads ? shared.chunk_of_request : args.chunk_of_request;
  int32_t* tile_of_request = args.batch <= kThreads ? shared.tile_of_request : args.tile_of_request;
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  if (threadIdx.x < kMaxPrefillChunks) shared.chunk_keys[threadIdx.x] = 0;
  if (threadIdx.x == 0) shared.longest = 0;

  // Chunks: requests in order, cut wherever their weight reaches the next whole chunk.
  int64_t weight = 0;
  int longest = 0;
  int64_t keys = 0;
  for (int b = threadIdx.x; b < args.batch; b += kThreads) {
    weight += request_weight(args, b);
    longest = max(longest, args.cache_seqlens[b]);
    keys += args.cache_seqlens[b];
  }
  int64_t total_weight;
  block_scan(weight, shared.warp_sums, total_weight);
  atomicMax(&shared.longest, longest);
  int64_t total_keys;
  block_scan(keys, shared.warp_sums, total_keys);
  const bool by_twos = bound_by_memory(args, total_keys);
  const int64_t chunk_weight =
      max(by_twos ? kChunkWeight / 2 : kChunkWeight, total_weight / (kMaxPrefillChunks - 1) + 1);
  // The end is one chunk of several: its tiles are what evens out the multiprocessors.
  const int last_chunk = static_cast<int>(max(int64_t{0}, total_weight / chunk_weight - kLastChunks));
  int64_t before = 0;
  int64_t tiles_before = 0;
  for (int first = 0; first < args.batch; first += kThreads) {
    const int b = first + threadIdx.x;
    int64_t sum;
    const int64_t prefix = before + block_scan(b < args.batch ? request_weight(args, b) : 0, shared.warp_sums, sum);
    before += sum;
    const int64_t tile =
        tiles_before + block_scan(b < args.batch ? tiles_of_request(args, b) : 0, shared.warp_sums, sum);
    tiles_before += sum;
    if (b < args.batch) {
      tile_of_request[b] = static_cast<int>(tile);
      const int chunk = min(static_cast<int>(static_cast<double>(prefix) / chunk_weight), last_chunk);
      chunk_of_request[b] = chunk;
      atomicAdd(reinterpret_cast<unsigned long long*>(&shared.chunk_keys[chunk]),
                static_cast<unsigned long long>(args.cache_seqlens[b]));
    }
  }
  __syncthreads();

  int most = shared.longest;
  if (args.mask.window_left >= 0 && args.mask.window_right >= 0) {
    most = min(most, args.mask.window_left + args.mask.window_right + args.tile_rows);
  }
  most = max(most, 1);

  // Twice over the tiles: to count the bins, and to fill them, in order.
  const int num_entries = static_cast<int>(min(tiles_before, int64_t{args.most_entries}));
  for (int pass = 0; pass < 2; ++pass) {
    for (int first = 0; first < num_entries; first += kThreads) {
      const int index = first + threadIdx.x;
      PrefillEntry entry;
      int bin = -1;
      if (index < num_entries) {
        const int b = request_of_tile(tile_of_request, args.batch, index);
        const int q_row = args.cu_seqlens_q[b];
        const int seqlen_q = args.cu_seqlens_q[b + 1] - q_row;
        const int row = (index - tile_of_request[b]) * args.tile_rows;
        entry.q_row = q_row + row;
        entry.rows = min(args.tile_rows, seqlen_q - row);
        entry.seqlen_k = args.cache_seqlens[b];
        entry.position = entry.seqlen_k - seqlen_q + row;
        entry.kv_row = args.cu_seqlens_k == nullptr ? 0 : args.cu_seqlens_k[b];
        entry.request = b;
        const int length =
            args.mask.end(entry.position + entry.rows - 1, entry.seqlen_k) - args.mask.first(entry.position);
        const int length_class =
            static_cast<int>(static_cast<float>(min(max(length, 0), most)) * (kClasses - 1) / most);
        bin = chunk_of_request[b] * kClasses + kClasses - 1 - length_class;
      }
      if (pass == 0) {
        if (bin >= 0) atomicAdd(&shared.bins[bin], 1);
        continue;
      }
      // Warp after warp, so that the tiles of a bin stay in order.
      const unsigned peers = __match_any_sync(0xFFFFFFFF, bin);
      const int rank = __popc(peers & ((1u << threadIdx.x % 32) - 1));
      const int warps = min(kWarps, (num_entries - first + 31) / 32);
      for (int warp = 0; warp < warps; ++warp) {
        if (threadIdx.x / 32 == warp && bin >= 0) {
          args.entries[shared.bins[bin] + rank] = entry;
          __syncwarp(peers);
          if (rank == 0) shared.bins[bin] += __popc(peers);
        }
        __syncthreads();
      }
    }
    __syncthreads();
    if (pass == 1) break;
    // Counts become first places.
    constexpr int kEach = kBins / kThreads;
    int64_t count = 0;
    for (int i = 0; i < kEach; ++i) count += shared.bins[threadIdx.x * kEach + i];
    int64_t total;
    int first = static_cast<int>(block_scan(count, shared.warp_sums, total));
    for (int i = 0; i < kEach; ++i) {
      int& bin = shared.bins[threadIdx.x * kEach + i];
      const int in_bin = bin;
      bin = first;
      first += in_bin;
    }
    __syncthreads();
    // A thread for each chunk, as they have divisions to do.
    const int c = min(static_cast<int>(threadIdx.x), kMaxPrefillChunks - 1);
    const int begin = shared.bins[c * kClasses];
    const int end = c + 1 < kMaxPrefillChunks ? shared.bins[(c + 1) * kClasses] : static_cast<int>(total);
    const bool used = threadIdx.x < kMaxPrefillChunks && begin < end;
    const int items = by_twos && c < last_chunk ? (end - begin + 1) / 2 : end - begin;
    // Both numbers in one sum: chunks, and items of a head before this one's.
    constexpr int64_t kOneChunk = int64_t{1} << 32;
    int64_t sums;
    const int64_t sum = block_scan(used ? kOneChunk + items : 0, shared.warp_sums, sums);
    if (used) {
      args.plan->chunks[sum / kOneChunk] = {static_cast<int>(sum % kOneChunk) * args.num_heads, begin, end - begin,
                                            group_heads(args, shared.chunk_keys[c]), items};
    }
    if (threadIdx.x == 0) {
      args.plan->num_items = static_cast<int>(sums % kOneChunk) * args.num_heads;
      args.plan->num_chunks = static_cast<int>(sums / kOneChunk);
    }
    __syncthreads();
  }
}

}  // namespace

void launch_prefill_plan(const PrefillPlanArgs& args, CUstream_st* stream) {
  plan_kernel<<<1, kThreads, 0, stream>>>(args);
}

}  // namespace onepass::hopper
