// The side of the decode kernel that talks to memory: each team of warps copies its own chunks of keys into a ring of
// its own in shared memory, so that no team ever waits for another's data.
#pragma once

#include "attention/cuda/hopper_decode_opening.cuh"
#include "tensor/cuda/hopper_ptx.cuh"

namespace onepass::hopper_decode {

// The teams of warps take turns at an item's chunks. A unit of the ring is a chunk's rows of K or of V, 64 or 128
// numbers of each: head dimension 256 takes two units for each. A unit lies in panels of 64 numbers a row, the rows of
// which are swizzled: 16 bytes c of row r lie at c ^ (r % 8), for ldmatrix without bank conflicts.
//
// With kBoxes the copy engine copies a unit's panels, of 16 or 32 keys, at one instruction each; else the warps'
// threads copy 16 bytes at a time. cp.async queues where ldmatrix and loads do: at 64 x 512 a warp waited 0.2 of 46 us
// for its keys, and most of the others for its turn.
//
// With kPairs a head is two neighbouring KV heads of 64 numbers in one, and its query rows are those of both: rows of
// 128 bytes are half of what L2 and DRAM like to read at once.
template <int kHeadDim_, int kTeamWarps_, int kChunkKeys_, bool kBoxes_, bool kPairs_ = false, bool kShort_ = false>
struct Ring {
  static constexpr int kHeadDim = kHeadDim_, kTeamWarps = kTeamWarps_, kChunkKeys = kChunkKeys_;
  static constexpr bool kBoxes = kBoxes_, kPairs = kPairs_;
  static constexpr bool kShort = kShort_;                             // of boxes of 16 keys where others have 32
  static constexpr int kQueryDim = kPairs ? kHeadDim / 2 : kHeadDim;  // of the rows of Q and of the output
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
    maps_ = R::kShort ? &args.short_boxes : first.blocks <= kNearBlocks || R::kPairs ? &args.near_boxes : &args.boxes;
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

  // With boxes: what prepare() has found is copied in two steps, of which the second alone, ten instructions a box, has
  // to come after the wait. The first has the units' barriers expect the chunk; false: there is none.
  __device__ __forceinline__ bool expect_prepared(uint32_t full) {
    if (!prepared_) return false;
#pragma unroll
    for (int unit = 0; unit < R::kUnitsOfChunk; ++unit) {
      if (lane_ == 0 && copies_boxes()) hopper::barrier_arrive_expect(R::my_barrier(full, unit), R::kUnitBytes);
      if (lane_ == 0 && !copies_boxes()) hopper::barrier_arrive(R::my_barrier(full, unit));
    }
    keep_here(box_row_);
    keep_here(box_page_);
    return true;
  }

  __device__ __forceinline__ void copy_prepared(uint32_t ring, uint32_t full) {
    prepared_ = false;
    if (lane_ == 0 && copies_boxes()) {
#pragma unroll
      for (int unit = 0; unit < R::kUnitsOfChunk; ++unit) {
        copy_boxes(unit, ring + unit * R::kUnitBytes, R::my_barrier(full, unit));
      }
    }
    look_ahead();
  }

  // Copies part `part` of the next chunk (the units of K, then those of V) to `unit`: as one group of copies or, with
  // boxes, so that this warp's barrier `full` of the unit tells when it has come. False: there is no chunk any more.
  __device__ __forceinline__ bool issue(int part, uint32_t unit, uint32_t full) {
    if (part == 0) {
      if (!prepared_) advance();
      prepared_ = false;
      if (!done_) look_ahead();
    }
    const bool is_k = part < R::kUnitsOfRow;
    const int first_dim = (is_k ? part : part - R::kUnitsOfRow) * R::kUnitDims;
    if constexpr (R::kBoxes) {
      if (!done_ && lane_ == 0) {
        if (copies_boxes()) {
          hopper::barrier_arrive_expect(full, R::kUnitBytes);
          copy_boxes(part, unit, full);
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
  // Whether the chunk has keys and this is the warp that copies for its team.
  __device__ __forceinline__ bool copies_boxes() const { return active_ && first_row_ == 0; }

  // What is read once may go first: 46.0 us instead of 47.7 at 32 x 1,024. But of two heads that share 256 bytes, what
  // the L2 cache fetches at once, the second must still find its own (2,801 GB/s instead of 2,768).
  __device__ __forceinline__ void copy_boxes(int part, uint32_t unit, uint32_t full) const {
    constexpr uint64_t kPolicy = R::kHeadDim < 128 ? hopper::kEvictNormal : hopper::kEvictFirst;
    const bool is_k = part < R::kUnitsOfRow;
    const int first_dim = (is_k ? part : part - R::kUnitsOfRow) * R::kUnitDims;
#pragma unroll
    for (int panel = 0; panel < R::kUnitDims / 64; ++panel) {
      hopper::copy_box_4d(unit + panel * R::kPanelBytes, is_k ? &maps_->k : &maps_->v, first_dim + panel * 64, head_kv_,
                          box_row_, box_page_, full, kPolicy);
    }
  }

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
  }

  // The next chunk's page is asked for now, a chunk's time before it is used. Not before the wait, as nothing checks
  // it.
  __device__ __forceinline__ void look_ahead() {
    const int key = first_key_ + (rows_scattered_ ? lane_ % R::kChunkKeys : 0) + R::kTeams * R::kChunkKeys;
    if (args_.page_table != nullptr && chunks_asked_ >= First::kChunks && chunk_ + R::kTeams < chunk_end_ &&
        key < hi_) {
      page_ahead_ = pages_[divide(key, args_.page_size)];
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
  const BoxMaps* maps_;
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
