// How a thread block of the decode kernel begins: what it reads of the plan and of the page table before the kernels
// that may write them are known to be over, and how it learns whether that was true.
#pragma once

#include <cstddef>

#include "attention/cuda/hopper_decode_args.h"
#include "attention/cuda/hopper_decode_ptx.cuh"

namespace onepass::hopper_decode {

// Which part of the plan a block follows: a worker's stretch, for one of the heads abreast.
struct Place {
  const Worker* worker;
  int head;

  __device__ __forceinline__ explicit Place(const RunArgs& args) {
    const int index = divide(blockIdx.x, args.heads_abreast);
    worker = args.workers + index;
    head = blockIdx.x - index * args.heads_abreast.value;
  }

  // Item i > 0 of the worker's.
  __device__ __forceinline__ Item load_item(const RunArgs& args, int next_item, int i) const {
    Item item;
    const int4* from = reinterpret_cast<const int4*>(args.items + next_item + i - 1);
    int4* to = reinterpret_cast<int4*>(&item);
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
    to[3] = from[3];
    return for_head(args, item);
  }

  __device__ __forceinline__ Item for_head(const RunArgs& args, Item item) const {
    item.head_kv += head;
    item.first_slot += head * args.max_slots;
    return item;
  }
};

// What the plan says to a worker at first. A warp reads it with one load, a word a lane: all warps of all blocks ask
// for the same few lines at the same time. (Six loads, 16 bytes for all lanes each: 5.37 us at 1 x 1,024 instead
// of 5.06.)
struct FirstItem {
  static constexpr int kItemWords = sizeof(Item) / 4;
  static constexpr int kWords = kItemWords + 3;  // num_items, next_item and blocks behind the item
  static constexpr int kPagesAt = offsetof(Worker, pages) / 4;
  static_assert(offsetof(Worker, num_items) == sizeof(Item) && offsetof(Worker, blocks) == 4 * (kWords - 1));

  int word;  // this lane's: lanes from kWords on have pages
  Item item;
  int num_items;
  int next_item;
  int blocks;
  // By the plan: of a team's first chunk of 32 keys, and of its first two of 16.
  int page_of_32;
  int pages_of_16[2];

  template <int kTeamWarps>
  __device__ __forceinline__ void read(const Place& place) {
    const int lane = threadIdx.x % 32, team = threadIdx.x / (32 * kTeamWarps);
    constexpr int kTeams = kWarps / kTeamWarps;
    int index = lane < kWords ? lane : 0;
    if (lane == kWords) index = kPagesAt + 2 * team;
    if (lane == kWords + 1) index = kPagesAt + team;
    if (lane == kWords + 2) index = kPagesAt + team + kTeams;
    word = load_relaxed(reinterpret_cast<const int*>(place.worker) + index);
    int* to = reinterpret_cast<int*>(&item);
#pragma unroll
    for (int i = 0; i < kItemWords; ++i) to[i] = __shfl_sync(~0u, word, i);
    num_items = __shfl_sync(~0u, word, kItemWords);
    next_item = __shfl_sync(~0u, word, kItemWords + 1);
    blocks = __shfl_sync(~0u, word, kItemWords + 2);
    page_of_32 = __shfl_sync(~0u, word, kWords);
    pages_of_16[0] = __shfl_sync(~0u, word, kWords + 1);
    pages_of_16[1] = __shfl_sync(~0u, word, kWords + 2);
    if (num_items <= 0) item = {};
  }
};

// What a team must know to ask for its first chunks.
template <typename R>
struct Opening : FirstItem {
  static constexpr int kChunks = R::kUnits / R::kUnitsOfChunk < 3 ? R::kUnits / R::kUnitsOfChunk : 3;

  const int32_t* page_from[kChunks];  // null: none to look up
  int pages[kChunks];                 // of the first chunks, as far as the item has any
  bool sound;                         // nothing that follows from it leads out of the arrays, even if it is out of date

  __device__ __forceinline__ explicit Opening(const FirstItem& first) : FirstItem(first), sound(false) {}

  // `hinted`: the pages are what the plan says, as far as it does, so that the page table is not waited for.
  __device__ __forceinline__ void look_up_pages(const RunArgs& args, const Place& place, bool hinted) {
    constexpr int kHints = !R::kBoxes ? 0 : R::kChunkKeys == 32 ? 1 : 2;
    const int64_t kv_rows = args.total_kv_rows > 0 ? args.total_kv_rows : INT64_MAX;
    const int64_t most_keys =
        args.page_table != nullptr ? args.page_table_stride * args.page_size.value : kv_rows - item.kv_begin;
    bool is_sound = item.request >= 0 && item.request < args.batch && item.head_kv >= 0 &&
                    item.head_kv + place.head < args.num_heads_kv && item.kv_begin >= 0 && item.some_lo >= 0 &&
                    item.some_hi <= most_keys && item.block_begin >= 0 &&
                    item.block_end <= (item.some_hi + kBlockKeys - 1) / kBlockKeys && item.q_begin >= 0 &&
                    item.seqlen_q >= 0 && item.q_begin + static_cast<int64_t>(item.seqlen_q) <= args.total_q;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int key = key_of_lane(args, item.block_begin * R::kChunksOfBlock + R::team() + i * R::kTeams);
      pages[i] = 0;
      page_from[i] = nullptr;
      if (is_sound && args.page_table != nullptr && key >= 0) {
        page_from[i] = args.page_table + item.request * args.page_table_stride + divide(key, args.page_size);
        if (hinted && i < kHints) {
          pages[i] = R::kChunkKeys == 32 ? page_of_32 : pages_of_16[i % 2];
        } else {
          pages[i] = load_relaxed(page_from[i]);
        }
        is_sound = pages[i] >= 0 && (pages[i] + int64_t{1}) * args.page_size.value <= kv_rows;
      }
    }
    sound = __all_sync(~0u, is_sound);
  }

  // Whose page this lane is to know: the chunk's first key's or, where pages are smaller than a chunk, its own key's.
  // -1: none.
  __device__ __forceinline__ int key_of_lane(const RunArgs& args, int chunk) const {
    const int first = chunk * R::kChunkKeys;
    if (chunk >= item.block_end * R::kChunksOfBlock || first >= item.some_hi || first + R::kChunkKeys <= item.some_lo) {
      return -1;
    }
    if (args.page_size.value % R::kChunkKeys == 0) return first;
    const int key = first + threadIdx.x % R::kChunkKeys;
    return key >= item.some_lo && key < item.some_hi ? key : -1;
  }

  // Asks for each team's first chunk to be brought into the L2 cache, while the kernels before this one still run: 8 MB
  // on all SMs, what DRAM reads in the 3 us until then. (The whole ring, 25 MB, takes longer to ask for and to read,
  // and what is asked for afterwards waits behind it: 48.6 us instead of 47.1 at 32 x 1,024.)
  __device__ __forceinline__ void prefetch_keys(const RunArgs& args, const Place& place) const {
    const int head = item.head_kv + place.head;
    const int chunk = item.block_begin * R::kChunksOfBlock + R::team(), first = chunk * R::kChunkKeys;
    if (chunk >= item.block_end * R::kChunksOfBlock) return;
    const bool scattered = args.page_table != nullptr && args.page_size.value % R::kChunkKeys != 0;
    const bool all = R::kChunkKeys == 32, takes_k = all || threadIdx.x % 32 < 16,
               takes_v = all || threadIdx.x % 32 >= 16;
    // Requests are issued one lane after the other, ten instructions each. So where it can be, a team asks once for K
    // and once for V, for all heads abreast and this head's share of the keys, and not once a key.
    const int share = divide(R::kChunkKeys, args.heads_abreast);
    const bool shared_out = !scattered && args.rows_adjoin && share * args.heads_abreast.value == R::kChunkKeys;
    int lo = first + threadIdx.x % R::kChunkKeys, hi = lo + 1;
    if (shared_out) {
      if (threadIdx.x % R::kChunkKeys != 0) return;
      lo = first + place.head * share;
      hi = lo + share;
    }
    lo = max(lo, item.some_lo);
    hi = min(hi, item.some_hi);
    if (lo >= hi) return;
    int64_t slot = static_cast<int64_t>(lo) + item.kv_begin;
    if (args.page_table != nullptr) {
      slot = lo - divide(scattered ? lo : first, args.page_size) * static_cast<int>(args.page_size.value);
    }
    const int64_t page = pages[0];
    const uint32_t bytes = 2 * R::kHeadDim * (shared_out ? (hi - lo) * args.heads_abreast.value : 1);
    const int prefetched_head = shared_out ? 0 : head;
    if (takes_k) {
      prefetch_to_l2(
          args.k + page * args.k_page_stride + slot * args.k_row_stride + prefetched_head * args.k_head_stride, bytes);
    }
    if (takes_v) {
      prefetch_to_l2(
          args.v + page * args.v_page_stride + slot * args.v_row_stride + prefetched_head * args.v_head_stride, bytes);
    }
  }

  __device__ __forceinline__ void prefetch_q(const RunArgs& args, const Place& place) const {
    const int head = item.head_kv + place.head, group = args.group.value;
    if (threadIdx.x >= item.seqlen_q * group) return;
    const int token = divide(threadIdx.x, args.group);
    prefetch_to_l2(args.q + (item.q_begin + token) * args.q_row_stride +
                       (head * group + static_cast<int>(threadIdx.x) - token * group) * args.q_head_stride,
                   2 * R::kQueryDim);
  }
};

// What an opening was read from, read again: in one trip to memory that nothing waits for until same_as().
template <typename R>
struct SecondReading {
  using First = Opening<R>;

  const int* from;
  int word;                   // of the worker's, and with boxes, whose lanes all look up the same pages, a page
  int pages[First::kChunks];  // without boxes

  // Before the wait.
  __device__ __forceinline__ SecondReading(const Place& place, const First& first) {
    const int lane = threadIdx.x % 32;
    from = reinterpret_cast<const int*>(place.worker) + (lane < First::kWords ? lane : 0);
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) {
      if (R::kBoxes && lane == First::kWords + i && first.page_from[i] != nullptr) from = first.page_from[i];
    }
    keep_here(from);
  }

  __device__ __forceinline__ void read(const First& first) {
    word = load_relaxed(from);
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) {
      if (!R::kBoxes) pages[i] = first.page_from[i] != nullptr ? load_relaxed(first.page_from[i]) : 0;
    }
  }

  __device__ __forceinline__ bool same_as(const First& first) const {
    const int lane = threadIdx.x % 32;
    // Without items, what the item was does not matter.
    bool same = lane >= First::kWords || word == first.word || (first.num_items <= 0 && lane != First::kItemWords);
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) {
      if (R::kBoxes) {
        if (lane == First::kWords + i && first.page_from[i] != nullptr) same = word == first.pages[i];
      } else {
        same &= pages[i] == first.pages[i];
      }
    }
    return __all_sync(~0u, same);
  }
};

}  // namespace onepass::hopper_decode
