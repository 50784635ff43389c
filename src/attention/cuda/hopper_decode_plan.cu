#include "attention/cuda/hopper_decode_plan.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>

#include "attention/cuda/hopper_decode_args.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass::hopper_decode {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Of a worker's stretch. With fewer, few of its eight warps have keys, and workers are more than it takes, and so are
// the parts to merge; and the blocks without work leave multiprocessors to the next launch, whose first keys come
// early.
constexpr int kLeastBlocks = 4;

struct PlanArgs {
  const int32_t* cu_seqlens_q;
  const int32_t* cache_seqlens;
  const int32_t* cu_seqlens_k;
  const int32_t* page_table;
  int64_t page_table_stride;
  Divisor page_size;
  int32_t batch;
  int32_t tiles;  // of a request
  int32_t heads_abreast;
  int32_t num_splits;
  int32_t split_blocks;  // 0: no split_size
  Mask mask;
  int32_t workers;
  int32_t multiprocessors;
  Worker* worker_list;
  Item* items;
  int32_t* block_ends;
  int32_t* part_ends;
  int4* slots;
  int64_t slot_words;  // of 16 bytes
};

// One tile of one request, in blocks. `offset` shifts the grid of parts, which begins at key 0, against the first
// block.
struct RequestBlocks {
  int q_begin;
  int seqlen_q;
  int seqlen_k;
  KeyRange first_row;
  KeyRange last_row;
  int first;
  int count;  // 1 where there is no key, so that there is an item to write zeros; 0 without queries
  bool empty;
  int part_blocks;
  int offset;
  int parts;
};

__device__ RequestBlocks describe(const PlanArgs& args, int request) {
  RequestBlocks r = {};
  r.q_begin = args.cu_seqlens_q[request];
  r.seqlen_q = args.cu_seqlens_q[request + 1] - r.q_begin;
  r.seqlen_k = args.cache_seqlens[request];
  if (r.seqlen_q <= 0) return r;
  r.first_row = visible_keys(args.mask, r.seqlen_k - r.seqlen_q, r.seqlen_k);
  r.last_row = visible_keys(args.mask, r.seqlen_k - 1, r.seqlen_k);
  const int lo = r.first_row.lo, hi = r.last_row.hi;
  r.empty = hi < lo;
  r.first = r.empty ? 0 : lo / kBlockKeys;
  r.count = r.empty ? 1 : hi / kBlockKeys - r.first + 1;
  r.part_blocks = r.count;
  r.parts = 1;
  if (args.split_blocks > 0) {
    r.part_blocks = args.split_blocks;
    r.offset = r.first % r.part_blocks;
    r.parts = (r.offset + r.count + r.part_blocks - 1) / r.part_blocks;
  } else if (args.num_splits > 1) {
    r.part_blocks = (r.count + args.num_splits - 1) / args.num_splits;
    r.parts = (r.count + r.part_blocks - 1) / r.part_blocks;
  }
  return r;
}

// Inclusive sum over the threads; `total` is the sum of all.
__device__ int sum_up_to_here(int value, int& total) {
  __shared__ int sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(~0u, value, distance);
    if (lane >= distance) value += other;
  }
  __syncthreads();  // the last call's sums have been read
  if (lane == 31) sums[warp] = value;
  __syncthreads();
  total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) value += sums[i];
    total += sums[i];
  }
  return value;
}

// The request that holds place `x` of a line in which request b takes tiles * (ends[b + 1] - ends[b]) places.
__device__ int find_request(const int32_t* ends, int batch, int tiles, int64_t x) {
  int low = 0, high = batch - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (static_cast<int64_t>(ends[middle + 1]) * tiles > x) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

struct Place {
  int request;
  int tile_of_request;
  int64_t tile;        // counted over requests with queries
  int64_t tile_begin;  // in the line of blocks
  int64_t tile_end;
};

__device__ Place find_place(const PlanArgs& args, int64_t position) {
  Place place;
  place.request = find_request(args.block_ends, args.batch, args.tiles, position);
  const int64_t begin = static_cast<int64_t>(args.block_ends[place.request]) * args.tiles;
  const int blocks = args.block_ends[place.request + 1] - args.block_ends[place.request];
  place.tile_of_request = static_cast<int>((position - begin) / blocks);
  place.tile = static_cast<int64_t>(args.part_ends[place.request]) * args.tiles + place.tile_of_request;
  place.tile_begin = begin + static_cast<int64_t>(place.tile_of_request) * blocks;
  place.tile_end = place.tile_begin + blocks;
  return place;
}

__device__ Item make_item(const PlanArgs& args, const RequestBlocks& r, int request, int tile) {
  Item item = {};
  item.request = request;
  item.head_kv = tile * args.heads_abreast;
  item.q_begin = r.q_begin;
  item.seqlen_q = r.seqlen_q;
  item.seqlen_k = r.seqlen_k;
  item.some_lo = r.first_row.lo;
  item.some_hi = r.last_row.hi + 1;
  item.all_lo = r.last_row.lo;
  item.all_hi = r.first_row.hi + 1;
  item.kv_begin = args.cu_seqlens_k != nullptr ? args.cu_seqlens_k[request] : 0;
  return item;
}

__device__ void put_item(const PlanArgs& args, int worker, int index, int next_item, const Item& item) {
  if (index == 0) {
    args.worker_list[worker].first = item;
  } else {
    args.items[next_item + index - 1] = item;
  }
}

// A warp: the pages of a worker's first keys.
__device__ void put_pages(const PlanArgs& args, int worker) {
  if (args.page_table == nullptr) return;
  __syncwarp();
  const Item& item = args.worker_list[worker].first;
  for (int i = threadIdx.x % 32; i < kHintKeys / 16; i += 32) {
    const int key = item.block_begin * kBlockKeys + 16 * i;
    args.worker_list[worker].pages[i] =
        key < min(item.block_end * kBlockKeys, item.some_hi)
            ? args.page_table[item.request * args.page_table_stride + divide(key, args.page_size)]
            : 0;
  }
}

// A block that merges keeps its multiprocessor after the others have gone. Where no more do so than there are
// multiprocessors to spare, none of the next launch's blocks is late: 12.0 us become 11.4 at 1 x 4,096.
__device__ int heads_to_merge(const PlanArgs& args, int workers) {
  const int spare = args.multiprocessors - workers * args.heads_abreast;
  return args.heads_abreast % 2 == 0 && args.heads_abreast > spare && args.heads_abreast / 2 <= spare ? 2 : 1;
}

// Automatic mode: tiles are cut where the workers' stretches end.
__device__ void plan_even(const PlanArgs& args, int64_t total) {
  __shared__ int first_item[kThreads], item_count[kThreads], first_slot[kThreads], head_is_part[kThreads];
  const int workers =
      static_cast<int>(min(static_cast<int64_t>(args.workers), (total + kLeastBlocks - 1) / kLeastBlocks));
  const int merge_heads = heads_to_merge(args, workers);
  const int c = threadIdx.x;
  int items = 0, slots = 0, blocks = 0;
  int64_t tile = 0;
  if (c < workers) {
    const int64_t begin = c * total / workers, end = (c + 1) * total / workers;
    const Place first = find_place(args, begin), last = find_place(args, end - 1);
    tile = first.tile;
    blocks = static_cast<int>(end - begin);
    items = static_cast<int>(last.tile - first.tile) + 1;
    head_is_part[c] = begin > first.tile_begin || end < first.tile_end;
    slots = head_is_part[c] + (items > 1 && end < last.tile_end);
  }
  int all;
  const int rest = max(0, items - 1);
  const int items_before = sum_up_to_here(rest, all) - rest;
  const int slots_before = sum_up_to_here(slots, all) - slots;
  if (c < args.workers) {
    first_item[c] = static_cast<int>(tile);
    item_count[c] = items;
    first_slot[c] = slots_before;
    args.worker_list[c].num_items = items;
    args.worker_list[c].next_item = items_before;
    args.worker_list[c].blocks = blocks;
  }
  __syncthreads();
  for (int w = threadIdx.x / 32; w < workers; w += kWarps) {
    const int64_t begin = w * total / workers, end = (w + 1) * total / workers;
    const int next_item = args.worker_list[w].next_item;
    for (int i = threadIdx.x % 32; i < item_count[w]; i += 32) {
      const int64_t t = first_item[w] + i;
      const int request = find_request(args.part_ends, args.batch, args.tiles, t);
      const int tile_of_request = static_cast<int>(t - static_cast<int64_t>(args.part_ends[request]) * args.tiles);
      const RequestBlocks r = describe(args, request);
      const int64_t tile_begin =
          static_cast<int64_t>(args.block_ends[request]) * args.tiles + static_cast<int64_t>(tile_of_request) * r.count;
      const int64_t tile_end = tile_begin + r.count;
      Item item = make_item(args, r, request, tile_of_request);
      item.merge_heads = merge_heads;
      if (!r.empty) {
        item.block_begin = r.first + static_cast<int>(max(begin, tile_begin) - tile_begin);
        item.block_end = r.first + static_cast<int>(min(end, tile_end) - tile_begin);
      }
      // Position p belongs to the last worker whose stretch begins at or before it.
      const int first_worker = static_cast<int>(((tile_begin + 1) * workers - 1) / total);
      const int last_worker = static_cast<int>((tile_end * workers - 1) / total);
      item.parts = last_worker - first_worker + 1;
      item.part = w - first_worker;
      item.first_slot = first_slot[w] + (i > 0 ? head_is_part[w] : 0) - item.part;
      put_item(args, w, i, next_item, item);
    }
    if (item_count[w] > 0) put_pages(args, w);
  }
}

// How many items begin before `position`, where the parts of a tile are known beforehand.
__device__ int64_t items_before(const PlanArgs& args, int64_t position, int64_t total, int64_t total_items) {
  if (position >= total) return total_items;
  const Place place = find_place(args, position);
  const RequestBlocks r = describe(args, place.request);
  const int inside = static_cast<int>(position - place.tile_begin);
  const int64_t first = static_cast<int64_t>(args.part_ends[place.request]) * args.tiles;
  return first + static_cast<int64_t>(place.tile_of_request) * r.parts +
         (inside == 0 ? 0 : (inside + r.offset + r.part_blocks - 1) / r.part_blocks);
}

// num_splits or split_size: a worker takes the items that begin in its stretch.
__device__ void plan_fixed(const PlanArgs& args, int64_t total, int64_t total_items) {
  const int merge_heads = heads_to_merge(args, args.workers);
  for (int w = threadIdx.x / 32; w < args.workers; w += kWarps) {
    const int64_t first = items_before(args, w * total / args.workers, total, total_items);
    const int64_t last = items_before(args, (w + 1) * total / args.workers, total, total_items);
    const int next_item = static_cast<int>(first) + 1;  // items lie where their numbers say
    if (threadIdx.x % 32 == 0) {
      args.worker_list[w].num_items = static_cast<int>(last - first);
      args.worker_list[w].next_item = next_item;
      args.worker_list[w].blocks = static_cast<int>((w + 1) * total / args.workers - w * total / args.workers);
    }
    for (int64_t i = first + threadIdx.x % 32; i < last; i += 32) {
      const int request = find_request(args.part_ends, args.batch, args.tiles, i);
      const RequestBlocks r = describe(args, request);
      const int inside = static_cast<int>(i - static_cast<int64_t>(args.part_ends[request]) * args.tiles);
      Item item = make_item(args, r, request, inside / r.parts);
      item.merge_heads = merge_heads;
      item.part = inside % r.parts;
      item.parts = r.parts;
      item.first_slot = static_cast<int>(i) - item.part;
      if (!r.empty) {
        item.block_begin = r.first + max(0, item.part * r.part_blocks - r.offset);
        item.block_end = r.first + min(r.count, (item.part + 1) * r.part_blocks - r.offset);
      }
      put_item(args, w, static_cast<int>(i - first), next_item, item);
    }
    if (last > first) put_pages(args, w);
  }
}

__global__ void __launch_bounds__(kThreads) plan_kernel(const PlanArgs args) {
  if (blockIdx.x > 0) {
    const int64_t stride = static_cast<int64_t>(gridDim.x - 1) * kThreads;
    for (int64_t i = (blockIdx.x - 1) * kThreads + threadIdx.x; i < args.slot_words; i += stride) {
      args.slots[i] = make_int4(0, 0, 0, 0);
    }
    return;
  }
  int blocks = 0, parts = 0;
  if (threadIdx.x == 0) args.block_ends[0] = args.part_ends[0] = 0;
  for (int base = 0; base < args.batch; base += kThreads) {
    const int request = base + threadIdx.x;
    RequestBlocks r = {};
    if (request < args.batch) r = describe(args, request);
    int all_blocks, all_parts;
    const int block_end = sum_up_to_here(r.count, all_blocks);
    const int part_end = sum_up_to_here(r.parts, all_parts);
    if (request < args.batch) {
      args.block_ends[request + 1] = blocks + block_end;
      args.part_ends[request + 1] = parts + part_end;
    }
    blocks += all_blocks;
    parts += all_parts;
  }
  __syncthreads();
  const int64_t total = static_cast<int64_t>(blocks) * args.tiles;
  if (total == 0) {
    for (int w = threadIdx.x; w < args.workers; w += kThreads) args.worker_list[w].num_items = 0;
  } else if (args.num_splits == 0 && args.split_blocks == 0) {
    plan_even(args, total);
  } else {
    plan_fixed(args, total, static_cast<int64_t>(parts) * args.tiles);
  }
}

int64_t take(int64_t& bytes, int64_t size) {
  const int64_t offset = bytes;
  bytes += (size + 255) / 256 * 256;
  return offset;
}

int split_blocks(const AttentionParams& params) {
  return static_cast<int>((static_cast<int64_t>(params.split_size) + kBlockKeys - 1) / kBlockKeys);
}

// `num_splits` is the most parts that may be.
int num_splits(const AttentionParams& params) { return std::min(params.num_splits, kMaxSplits); }

// As many KV heads as leave no more than a twentieth of the multiprocessors without work: memory is what limits.
int heads_abreast(int num_heads_kv, int multiprocessors) {
  int best = 1;
  for (int heads = 2; heads <= std::min(num_heads_kv, multiprocessors); ++heads) {
    const int used = multiprocessors / heads * heads;
    if (num_heads_kv % heads == 0 && used * 20 >= multiprocessors * 19) best = heads;
  }
  return best;
}

// Thread blocks for each of the heads abreast. Four multiprocessors stay free, where no more than a twentieth is
// thereby without work: the next launch's first blocks, or those of this one that merge, are then in nobody's way. Four
// heads abreast: 132 blocks take 91.6 us at 32 x 4,096 and head dimension 64 read by pairs, 128 blocks 89.9; 1 x
// 16,384 19.5 and 15.2.
int workers_of_head(int heads_abreast, int multiprocessors) {
  int workers = std::max(1, multiprocessors / heads_abreast);
  while (workers * heads_abreast > multiprocessors - 4 && (workers - 1) * heads_abreast * 20 >= multiprocessors * 19) {
    --workers;
  }
  return workers;
}

}  // namespace

// With l = ceil(log2(value)) and magic = floor(2^(31 + l) / value) + 1, magic * value exceeds 2^(31 + l) by at most
// 2^l, which is what the quotient of a number below 2^31 can bear.
Divisor make_divisor(int value) {
  Divisor divisor;
  divisor.value = static_cast<uint32_t>(value);
  divisor.shift = 31 + std::bit_width(divisor.value - 1);
  divisor.magic = static_cast<uint32_t>((uint64_t{1} << divisor.shift) / divisor.value + 1);
  return divisor;
}

Mask make_mask(const AttentionParams& params) {
  constexpr int kNoLimit = 1 << 30;
  Mask mask;
  mask.window_left = params.window_left < 0 ? kNoLimit : std::min(params.window_left, kNoLimit);
  mask.window_right = params.causal ? 0 : params.window_right < 0 ? kNoLimit : std::min(params.window_right, kNoLimit);
  mask.chunked = params.attention_chunk > 0;
  mask.chunk = make_divisor(std::clamp(params.attention_chunk, 1, kNoLimit));
  return mask;
}

Layout make_layout(const AttentionParams& params, int multiprocessors, int slot_rows) {
  Layout layout;
  layout.heads_abreast = heads_abreast(params.num_heads_kv, multiprocessors);
  layout.workers = std::min(workers_of_head(layout.heads_abreast, multiprocessors), kThreads);
  layout.multiprocessors = multiprocessors;
  layout.slot_rows = slot_rows;
  const int64_t tiles = static_cast<int64_t>(params.batch) * (params.num_heads_kv / layout.heads_abreast);
  if (params.split_size > 0) {
    const int64_t longest =
        params.page_table != nullptr ? params.page_table_stride * params.page_size : params.total_kv_rows;
    layout.max_parts = longest / (static_cast<int64_t>(split_blocks(params)) * kBlockKeys) + 2;
    layout.max_items = layout.max_slots = tiles * layout.max_parts;
  } else if (params.num_splits > 0) {
    layout.max_parts = num_splits(params);
    layout.max_items = tiles * layout.max_parts;
    layout.max_slots = layout.max_parts > 1 ? layout.max_items : 0;
  } else {
    layout.max_parts = layout.workers;
    layout.max_items = tiles + layout.workers;
    layout.max_slots = 2 * layout.workers;
  }
  layout.workers_offset = take(layout.bytes, layout.workers * static_cast<int64_t>(sizeof(Worker)));
  layout.items_offset = take(layout.bytes, layout.max_items * static_cast<int64_t>(sizeof(Item)));
  layout.block_ends_offset = take(layout.bytes, (params.batch + 1) * int64_t{4});
  layout.part_ends_offset = take(layout.bytes, (params.batch + 1) * int64_t{4});
  layout.slots_offset = take(layout.bytes, layout.heads_abreast * layout.max_slots * slot_rows * params.head_dim * 4);
  layout.sums_offset = take(layout.bytes, layout.heads_abreast * layout.max_slots * slot_rows * 8);
  return layout;
}

Status launch_plan(const AttentionParams& params, const Layout& layout, void* scratch, CUstream_st* stream) {
  char* base = static_cast<char*>(scratch);
  PlanArgs args = {};
  args.cu_seqlens_q = params.cu_seqlens_q;
  args.cache_seqlens = params.cache_seqlens;
  args.cu_seqlens_k = params.page_table == nullptr ? params.cu_seqlens_k : nullptr;
  args.page_table = params.page_table;
  args.page_table_stride = params.page_table_stride;
  args.page_size = make_divisor(std::max(1, params.page_size));
  args.batch = params.batch;
  args.tiles = params.num_heads_kv / layout.heads_abreast;
  args.heads_abreast = layout.heads_abreast;
  args.num_splits = num_splits(params);
  args.split_blocks = split_blocks(params);
  args.mask = make_mask(params);
  args.workers = layout.workers;
  args.multiprocessors = layout.multiprocessors;
  args.worker_list = reinterpret_cast<Worker*>(base + layout.workers_offset);
  args.items = reinterpret_cast<Item*>(base + layout.items_offset);
  args.block_ends = reinterpret_cast<int32_t*>(base + layout.block_ends_offset);
  args.part_ends = reinterpret_cast<int32_t*>(base + layout.part_ends_offset);
  args.slots = reinterpret_cast<int4*>(base + layout.slots_offset);
  args.slot_words = (layout.bytes - layout.slots_offset) / 16;
  const int zeroing_blocks =
      static_cast<int>(std::min<int64_t>(128, (args.slot_words + 8 * kThreads - 1) / (8 * kThreads)));
  plan_kernel<<<1 + zeroing_blocks, kThreads, 0, stream>>>(args);
  return launch_status("hopper-decode: plan");
}

}  // namespace onepass::hopper_decode
