// What every part of the kernel for all layers knows, and the exchange between thread blocks.
//
// Activations go from block to block through memory that holds all ones where nothing has been written: whoever needs a
// word asks for it until it is another. So no barrier stands between two products, and a number is there one trip to
// the L2 cache after it was written. All ones are a NaN that no conversion or sum gives (theirs is 0x7fff...).
//
// There are three sets of such memory. When a block has seen all of the residual stream after layer l - 1, all that
// layer l - 2 exchanged has been read, as each block's share of a product follows from what it has read; then each
// block fills its piece of that layer's set, which is layer l + 1's, with ones again, and says nothing more to the
// others before that is done (in gate_up of layer l).
//
// Formally the readers would have to acquire what they have read before they ask for the next words; loads past the L1
// cache are served in the order in which they are issued.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "models/cuda/layer_stack_layout.cuh"
#include "tensor/cuda/hopper_ptx.cuh"

namespace onepass::layer_stack {

inline constexpr uint32_t kUnwritten = 0xffffffffu;

struct KernelArgs {
  StackParams p;
  Products products;
  ExchangeSet set;
  SharedLayout shared;
  int box_keys;  // of a piece of a page
};

// Barriers among the threads that compute.
inline constexpr int kComputeBarrier = 1;
__device__ inline void sync_consumers() { named_barrier_sync(kComputeBarrier, kConsumers); }

// A thread's place. Each part of the work takes a copy that the compiler knows nothing of: addresses that follow from
// it are worked out there, where otherwise those of all parts are kept in registers from the first layer to the last.
struct Place {
  int warp, lane;

  __device__ __forceinline__ Place() : warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}
  __device__ __forceinline__ Place(const Place& other) : warp(other.warp), lane(other.lane) {
    asm volatile("" : "+r"(warp), "+r"(lane));
  }
};

struct Block {
  const KernelArgs& args;
  uint32_t shared;        // address of the dynamic shared memory
  unsigned char* memory;  // the same
  int* seqlens;           // [rows], in shared memory
  ItemList* items;        // of this role: the warps that compute, or that which copies

  __device__ int rows() const { return args.p.num_rows; }
  __device__ int blocks() const { return static_cast<int>(gridDim.x); }
  __device__ int index() const { return static_cast<int>(blockIdx.x); }
  __device__ uint32_t full(int slot) const { return shared + args.shared.barriers + slot * 8; }
  __device__ uint32_t empty(int slot) const { return full(args.p.plan.ring_slots + slot); }
  // The residual stream before a layer has been seen by all warps; the set of the next layer is clean.
  __device__ uint32_t seen() const { return full(2 * args.p.plan.ring_slots); }
  __device__ uint32_t cleaned() const { return seen() + 8; }
  __device__ const Product& product(int number) const { return args.products.of[number]; }
  __device__ int tiles_of(int product) const { return at<int>(args.shared.tiles)[product]; }
  __device__ const StackLayer& layer(int number) const { return at<StackLayer>(args.shared.layers)[number]; }
  template <typename T>
  __device__ T* at(int offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ unsigned char* exchange_set(int number) const {
    return static_cast<unsigned char*>(args.p.exchange) + kStateBytes + number % kSets * args.p.plan.set_bytes;
  }
  // Where this block writes its outputs of a row.
  __device__ unsigned char* mine(unsigned char* set, const BlockRows& rows, int row) const {
    return set + rows.at + index() * rows.block_stride + row * rows.row_stride;
  }
};

__device__ inline uint4 load_relaxed_16(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline void store_relaxed_16(void* to, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ inline void store_relaxed_8(void* to, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}
__device__ inline void store_relaxed_4(void* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

__device__ inline bool is_written(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)) != kUnwritten; }

// Brings v[n] from at(n) for each bit n of `wanted` when all of it has been written, and zeros for the others.
// Everything is asked for before any of it is looked at. A block that waits for seconds has lost the others: better an
// error than a GPU that hangs.
inline constexpr int kMostTries = 1 << 24;
template <int kCount, typename At>
__device__ __forceinline__ void await(uint4 (&v)[kCount], uint32_t wanted, const At& at) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) v[n] = {0, 0, 0, 0};
  for (int tries = 0; tries < kMostTries; ++tries) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      if (wanted >> n & 1) v[n] = load_relaxed_16(at(n));
    }
    bool all = true;
#pragma unroll
    for (int n = 0; n < kCount; ++n) all = all && is_written(v[n]);
    if (all) return;
  }
  __trap();
}

// This role's items of a layer with the window, by one thread.
__device__ inline void list_items(const Block& block, int window_left) {
  ItemList& list = *block.items;
  const int rows = block.rows(), kv_heads = block.args.p.shape.num_kv_heads;
  const AttentionShare share(block.seqlens, rows, window_left, kv_heads, block.index(), block.blocks());
  list.window_left = window_left;
  list.head = share.head;
  list.count = 0;
  if (share.begin == share.end) return;
  for (AttentionItems items(share, block.seqlens, rows, window_left); items.next();)
    list.items[list.count++] = items.item;
}

// Fills `bytes` from `at`, multiples of 16, with what nobody has written.
__device__ inline void clean(unsigned char* at, int64_t bytes, int lane) {
  for (int64_t i = lane * 16; i < bytes; i += 32 * 16)
    store_relaxed_16(at + i, {kUnwritten, kUnwritten, kUnwritten, kUnwritten});
}

// The warp that cleans: this block's piece of each set that is free again, of as many rows as may have been written.
__device__ inline void clean_sets(const Block& block, const int* state) {
  const int lane = threadIdx.x % 32, first_set = __ldcg(state);
  const ExchangeSet& layout = block.args.set;
  int rows = block.rows();
  for (int i = 1; i <= kSets; ++i) rows = max(rows, __ldcg(state + i));
  const int64_t attention = int64_t{rows} * block.args.p.shape.num_heads * block.args.p.shape.head_dim * 2;
  const int64_t share = (attention / 16 + block.blocks() - 1) / block.blocks() * 16, begin = block.index() * share;
#pragma unroll 1
  for (int layer = 0; layer < block.args.p.shape.num_layers; ++layer) {
    unsigned char* const set = block.exchange_set(first_set + layer + 1);
    hopper::barrier_wait(block.seen(), layer & 1);
    clean(block.mine(set, layout.qkv, 0), rows * layout.qkv.row_stride, lane);
    clean(block.mine(set, layout.mid, 0), rows * layout.mid.row_stride, lane);
    clean(block.mine(set, layout.out, 0), rows * layout.out.row_stride, lane);
    clean(block.mine(set, layout.inner, 0), rows * layout.inner.row_stride, lane);
    clean(set + layout.attention + begin, min(share, attention - begin), lane);
    clean(set + layout.parts + block.index() * 2 * layout.part_bytes, 2 * layout.part_bytes, lane);
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    __syncwarp();
    if (lane == 0) hopper::barrier_arrive(block.cleaned());
  }
}

}  // namespace onepass::layer_stack
