// The side of the decode kernel that talks to memory: each team of warps copies its own chunks of keys into a ring of
// its own in shared memory, so that no team ever waits for another's data.
#pragma once

#include "attention/cuda/hopper_decode_args.h"
#include "attention/cuda/hopper_decode_ptx.cuh"
#include "attention/cuda/hopper_ptx.cuh"

namespace onepass::hopper_decode {

// The teams of warps take turns at an item's chunks. A unit of the ring is a chunk's rows of K or of V, 64 or 128
// numbers of each: head dimension 256 takes two units for each. A unit lies in panels of 64 numbers a row, the rows of
// which are swizzled: 16 bytes c of row r lie at c ^ (r % 8), for ldmatrix without bank conflicts.
//
// With kBoxes the copy engine copies a unit's panels, of 16 or 32 keys, at one instruction each; else the warps'
// threads copy 16 bytes at a time. cp.async queues where ldmatrix and loads do: at 64 x 512 a warp waited 0.2 of 46 us
// for its keys, and most of the others for its turn.
template <int kHeadDim_, int kTeamWarps_, int kChunkKeys_, bool kBoxes_>
struct Ring {
  static constexpr int kHeadDim = kHeadDim_, kTeamWarps = kTeamWarps_, kChunkKeys = kChunkKeys_;
  static constexpr bool kBoxes = kBoxes_;
  static constexpr int kUnitDims = kHeadDim < 128 ? kHeadDim : 128;
  static constexpr int kUnitsOfRow = kHeadDim / kUnitDims;
  static constexpr int kUnitsOfChunk = 2 * kUnitsOfRow;  // K, then V
  static constexpr int kChunkTiles = kChunkKeys / 16;
  static constexpr int kChunksOfBlock = kBlockKeys / kChunkKeys;
  static constexpr int kRowBytes = 2 * kUnitDims;
  static constexpr int kUnitBytes = kChunkKeys * kRowBytes;
  static constexpr int kPanelBytes = kChunkKeys * 128;
  static constexpr int kTeams = kWarps / kTeamWarps;
  // 24 KB a warp, 192 KB a thread block: an SM's share of the bandwidth, 23 KB a microsecond, times the latency of
  // memory, and as much again several times, so that memory has work while warps meet at the end of an item.
  static constexpr int kUnits = kTeamWarps * 24 * 1024 / kUnitBytes;
  static constexpr int kBytes = kUnits * kUnitBytes;

  static __device__ __forceinline__ int team() { return threadIdx.x / (32 * kTeamWarps); }
  static __device__ __forceinline__ void sync_team() {
    if constexpr (kTeamWarps == 1) {
      __syncwarp();
    } else {
      named_barrier_sync(1 + team(), 32 * kTeamWarps);
    }
  }

  // Of boxes: each warp of a team has a barrier of its own for each unit, though one warp copies for all, so that a
  // warp that begins again concerns no other. The units' barriers, [kUnits][kTeamWarps], begin at `full`.
  static __device__ __forceinline__ uint32_t my_barrier(uint32_t full, int unit) {
    return full + 8 * (unit * kTeamWarps + threadIdx.x / 32 % kTeamWarps);
  }
  static __device__ __forceinline__ void init_my_barriers(uint32_t full, bool again) {
    const int lane = threadIdx.x % 32;
    if (lane < kUnits) {
      if (again) hopper::barrier_invalidate(my_barrier(full, lane));
      hopper::barrier_init(my_barrier(full, lane), 1);
    }
    hopper::fence_barrier_init();
    __syncwarp();
  }
  static __device__ __forceinline__ void wait_for_unit(uint32_t full, int unit, uint32_t phase) {
#pragma unroll
    for (int warp = 0; warp < kTeamWarps; ++warp) hopper::barrier_wait(full + 8 * (unit * kTeamWarps + warp), phase);
  }
};

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

// What a team must know to ask for its first chunks.
template <typename R>
struct Opening {
  static constexpr int kChunks = R::kUnits / R::kUnitsOfChunk < 3 ? R::kUnits / R::kUnitsOfChunk : 3;

  Item item;
  int num_items;
  int next_item;
  const int32_t* page_from[kChunks];  // null: none to look up
  int pages[kChunks];                 // of the first chunks, as far as the item has any
  bool sound;                         // nothing that follows from it leads out of the arrays, even if it is out of date

  __device__ __forceinline__ void read(const RunArgs& args, const Place& place) {
    const int4* from = reinterpret_cast<const int4*>(place.worker);
    int4* to = reinterpret_cast<int4*>(&item);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = load_relaxed(from + i);
    const int4 rest = load_relaxed(from + 4);
    num_items = rest.x;
    next_item = rest.y;
    if (num_items <= 0) item = {};
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
        pages[i] = load_relaxed(page_from[i]);
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

  // Whether all heads are abreast and their rows make one stretch of memory, which their blocks can share out by keys.
  static __device__ __forceinline__ bool rows_adjoin(int64_t row_stride, int64_t head_stride, const Divisor& heads) {
    return head_stride == R::kHeadDim && row_stride == R::kHeadDim * static_cast<int64_t>(heads.value) &&
           R::kChunkKeys % heads.value == 0;
  }

  // Asks for each team's first chunk to be brought into the L2 cache, while the kernels before this one still run: 8 MB
  // on all SMs, what DRAM reads in the 3 us until then. (The whole ring, 25 MB, takes longer to ask for and to read,
  // and what is asked for afterwards waits behind it: 48.6 us instead of 47.1 at 32 x 1,024.)
  __device__ __forceinline__ void prefetch(const RunArgs& args, const Place& place) const {
    const int head = item.head_kv + place.head;
    const int group = args.group.value;
    if (threadIdx.x < item.seqlen_q * group) {
      const int token = divide(threadIdx.x, args.group);
      prefetch_to_l2(args.q + (item.q_begin + token) * args.q_row_stride +
                         (head * group + static_cast<int>(threadIdx.x) - token * group) * args.q_head_stride,
                     2 * R::kHeadDim);
    }
    const int chunk = item.block_begin * R::kChunksOfBlock + R::team(), first = chunk * R::kChunkKeys;
    if (chunk >= item.block_end * R::kChunksOfBlock) return;
    const bool scattered = args.page_table != nullptr && args.page_size.value % R::kChunkKeys != 0;
    const bool all = R::kChunkKeys == 32, takes_k = all || threadIdx.x % 32 < 16,
               takes_v = all || threadIdx.x % 32 >= 16;
    // Requests are issued one lane after the other, ten instructions each. So where it can be, a team asks once for K
    // and once for V, for all heads abreast and this head's share of the keys, and not once a key.
    const bool shared_out = !scattered && rows_adjoin(args.k_row_stride, args.k_head_stride, args.heads_abreast) &&
                            rows_adjoin(args.v_row_stride, args.v_head_stride, args.heads_abreast);
    int lo = first + threadIdx.x % R::kChunkKeys, hi = lo + 1;
    if (shared_out) {
      if (threadIdx.x % R::kChunkKeys != 0) return;
      const int share = divide(R::kChunkKeys, args.heads_abreast);
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
};

// What an opening was read from, read again: in one trip to memory that nothing waits for until same_as().
template <typename R>
struct SecondReading {
  using First = Opening<R>;

  int4 item[4];
  int4 rest;
  int pages[First::kChunks];

  __device__ __forceinline__ void read(const Place& place, const First& first) {
    const int4* from = reinterpret_cast<const int4*>(place.worker);
#pragma unroll
    for (int i = 0; i < 4; ++i) item[i] = load_relaxed(from + i);
    rest = load_relaxed(from + 4);
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) pages[i] = first.page_from[i] ? load_relaxed(first.page_from[i]) : 0;
  }

  __device__ __forceinline__ bool same_as(const First& first) const {
    const int4* other = reinterpret_cast<const int4*>(&first.item);
    bool same = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      same &= item[i].x == other[i].x && item[i].y == other[i].y && item[i].z == other[i].z && item[i].w == other[i].w;
    }
    same &= rest.y == first.next_item;
    same |= first.num_items <= 0;
    same &= rest.x == first.num_items;
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) same &= pages[i] == first.pages[i];
    return __all_sync(~0u, same);
  }
};

// Walks over a team's chunks of a worker's items ahead of the multiplication. Without boxes each warp copies its share
// of the rows.
template <typename R>
class Loader {
 public:
  static constexpr int kWarpRows = R::kChunkKeys / R::kTeamWarps;
  static constexpr int kLanesOfRow = R::kRowBytes / 16;
  static constexpr int kRowsAtOnce = 32 / kLanesOfRow;

  using First = Opening<R>;

  __device__ __forceinline__ Loader(const RunArgs& args, const Place& place, const First& first)
      : args_(args), place_(place), first_(first) {
    lane_ = threadIdx.x % 32;
    rows_scattered_ = !R::kBoxes && args.page_table != nullptr && args.page_size.value % R::kChunkKeys != 0;
    first_row_ = threadIdx.x / 32 % R::kTeamWarps * kWarpRows;
    const int row = first_row_ + lane_ / kLanesOfRow, chunk = lane_ % kLanesOfRow;
    k_lane_ = row * args.k_row_stride + chunk * 8;
    v_lane_ = row * args.v_row_stride + chunk * 8;
    shared_lane_ = chunk / 8 * R::kPanelBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
  }

  // Begins with what the opening now says.
  __device__ __forceinline__ void restart() {
    item_ = min(1, first_.num_items);
    open(place_.for_head(args_, first_.item));
    chunk_ -= R::kTeams;
    chunks_asked_ = 0;
    prepared_ = false;
  }

  // Finds the place of the first chunk, so that its copy can begin at once.
  __device__ __forceinline__ void prepare() {
    if (!opening_has_next()) return;
    advance();
    prepared_ = true;
    if constexpr (!R::kBoxes) {
      keep_here(k_offset_);
      keep_here(v_offset_);
    }
  }

  // Whether the opening says where the next chunk is.
  __device__ __forceinline__ bool opening_has_next() const {
    return prepared_ || (chunks_asked_ < First::kChunks && chunk_ + R::kTeams < chunk_end_);
  }

  // Copies part `part` of the next chunk (the units of K, then those of V) to `unit`: as one group of copies or, with
  // boxes, so that this warp's barrier `full` of the unit tells when it has come. False: there is no chunk any more.
  __device__ __forceinline__ bool issue(int part, uint32_t unit, uint32_t full) {
    if (part == 0 && !prepared_) advance();
    prepared_ = false;
    const bool is_k = part < R::kUnitsOfRow;
    const int first_dim = (is_k ? part : part - R::kUnitsOfRow) * R::kUnitDims;
    if constexpr (R::kBoxes) {
      if (!done_ && lane_ == 0) {
        // What is read once may go first: 46.0 us instead of 47.7 at 32 x 1,024. But of two heads that share 256 bytes,
        // what the L2 cache fetches at once, the second must still find its own (2,801 GB/s instead of 2,768).
        constexpr uint64_t kPolicy = R::kHeadDim < 128 ? hopper::kEvictNormal : hopper::kEvictFirst;
        if (active_ && first_row_ == 0) {
          hopper::barrier_arrive_expect(full, R::kUnitBytes);
#pragma unroll
          for (int panel = 0; panel < R::kUnitDims / 64; ++panel) {
            hopper::copy_box_4d(unit + panel * R::kPanelBytes, is_k ? &args_.k_map : &args_.v_map,
                                first_dim + panel * 64, head_kv_, box_row_, box_page_, full, kPolicy);
          }
        } else {
          hopper::barrier_arrive(full);
        }
      }
    } else {
      if (active_) {
        copy(unit, (is_k ? args_.k : args_.v) + first_dim, is_k ? k_offset_ : v_offset_, is_k ? k_lane_ : v_lane_,
             is_k ? args_.k_row_stride : args_.v_row_stride);
      }
      commit_copies();
    }
    return !done_;
  }

 private:
  __device__ __forceinline__ void advance() {
    if (done_) return;
    chunk_ += R::kTeams;
    bool page_is_known = true;
    while (chunk_ >= chunk_end_) {
      if (item_ == first_.num_items) {
        done_ = true;
        active_ = false;
        let_next_kernel_start();  // memory will soon be idle: the next kernel's prefetches may come
        return;
      }
      open(place_.load_item(args_, first_.next_item, item_));
      ++item_;
      page_is_known = false;
      chunks_asked_ = First::kChunks;
    }
    int page_known = page_ahead_;
#pragma unroll
    for (int i = 0; i < First::kChunks; ++i) {
      if (chunks_asked_ == i) page_known = first_.pages[i];
    }
    ++chunks_asked_;
    first_key_ = chunk_ * R::kChunkKeys;
    active_ = first_key_ < hi_ && first_key_ + R::kChunkKeys > lo_;
    // Where a page holds the whole chunk, every lane computes the place of its first key; else each that of its own
    // key.
    const int key = first_key_ + (rows_scattered_ ? lane_ % R::kChunkKeys : 0);
    const bool needed = rows_scattered_ ? key >= lo_ && key < hi_ : active_;
    int64_t slot = key + kv_begin_;
    int page = 0;
    if (args_.page_table != nullptr && needed) {
      const int index = divide(key, args_.page_size);
      page = page_is_known ? page_known : pages_[index];
      slot = key - index * static_cast<int>(args_.page_size.value);
    }
    if constexpr (R::kBoxes) {
      box_row_ = static_cast<int>(slot);
      box_page_ = page;
    } else {
      k_offset_ = needed ? page * args_.k_page_stride + slot * args_.k_row_stride + k_head_ : 0;
      v_offset_ = needed ? page * args_.v_page_stride + slot * args_.v_row_stride + v_head_ : 0;
    }
    // The next chunk's page is asked for now, a chunk's time before it is used.
    const int key_ahead = key + R::kTeams * R::kChunkKeys;
    if (args_.page_table != nullptr && chunks_asked_ >= First::kChunks && chunk_ + R::kTeams < chunk_end_ &&
        key_ahead < hi_) {
      page_ahead_ = pages_[divide(key_ahead, args_.page_size)];
    }
  }

  __device__ __forceinline__ void open(const Item& item) {
    chunk_ = item.block_begin * R::kChunksOfBlock + R::team();
    chunk_end_ = item.block_end * R::kChunksOfBlock;
    lo_ = item.some_lo;
    hi_ = item.some_hi;
    kv_begin_ = item.kv_begin;
    head_kv_ = item.head_kv;
    k_head_ = item.head_kv * args_.k_head_stride;
    v_head_ = item.head_kv * args_.v_head_stride;
    pages_ = args_.page_table + item.request * args_.page_table_stride;
  }

  __device__ __forceinline__ void copy(uint32_t unit, const uint16_t* base, int64_t offset, int64_t lane_offset,
                                       int64_t row_stride) {
    const uint32_t shared = unit + shared_lane_;
    if (!rows_scattered_ && first_key_ >= lo_ && first_key_ + R::kChunkKeys <= hi_) {
      const uint16_t* source = base + offset + lane_offset;
#pragma unroll
      for (int row = 0; row < kWarpRows; row += kRowsAtOnce) {
        copy_16_async((shared ^ (row % 8 * 16)) + row * 128, source, true);
        source += kRowsAtOnce * row_stride;
      }
      return;
    }
#pragma unroll 2
    for (int row = 0; row < kWarpRows; row += kRowsAtOnce) {
      const int lane_row = first_row_ + row + lane_ / kLanesOfRow;
      const int key = first_key_ + lane_row;
      const uint16_t* source = rows_scattered_ ? base + __shfl_sync(~0u, offset, lane_row) + lane_ % kLanesOfRow * 8
                                               : base + offset + lane_offset + row * row_stride;
      copy_16_async((shared ^ (row % 8 * 16)) + row * 128, source, key >= lo_ && key < hi_);
    }
  }

  const RunArgs& args_;
  const Place& place_;
  const First& first_;
  int lane_;
  bool rows_scattered_;  // a chunk's rows may lie in several pages
  int first_row_;        // of a chunk's that this warp copies
  int64_t k_lane_;       // from the unit's first row to what this lane copies first
  int64_t v_lane_;
  uint32_t shared_lane_;
  // The item.
  int item_ = 0;
  int chunks_asked_ = 0;  // of the first item; afterwards no less than the opening has
  int chunk_ = 0;
  int chunk_end_ = 0;
  int lo_ = 0;  // keys that some row sees
  int hi_ = 0;
  int kv_begin_ = 0;
  int head_kv_ = 0;
  int64_t k_head_ = 0;
  int64_t v_head_ = 0;
  const int32_t* pages_ = nullptr;
  int page_ahead_ = 0;
  // The chunk.
  bool prepared_ = false;  // its place is known before its copy is asked for
  bool done_ = false;      // all chunks have been asked for
  bool active_ = false;    // it has visible keys
  int first_key_ = 0;
  int box_row_ = 0;
  int box_page_ = 0;
  int64_t k_offset_ = 0;
  int64_t v_offset_ = 0;
};

}  // namespace onepass::hopper_decode
