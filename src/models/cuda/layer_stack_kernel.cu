#include "models/cuda/layer_stack_kernel.h"

#include <algorithm>

#include "models/cuda/layer_stack_attention.cuh"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace layer_stack {
namespace {

// The eight warps that compute. The products of a layer are turns of one loop: short code stays in the instruction
// cache.
template <typename T, int kHeadDim>
__device__ __forceinline__ void compute(const Block& block, int first_set) {
  const KernelArgs& args = block.args;
  const StackParams& p = args.p;
  const StackShape& shape = p.shape;
  RingReader ring(block);
  Multiplier<T> multiplier(block, ring);
  Attention<T, kHeadDim> attention(block, ring);
  float* const residual = block.at<float>(args.shared.residual);

  attention.fill_angles();
  const auto hidden_at = [&](int row, int tile, int column) {
    return int64_t{row} * shape.hidden_size + (block.index() * block.product(kO).of_block + tile) * kTileRows + column;
  };
  multiplier.finish(kO, nullptr, [&](int output, int row, int tile, int column, float, bool exists) {
    if (exists) residual[output] = p.hidden[hidden_at(row, tile, column)];
  });

#pragma unroll 1
  for (int index = 0; index < shape.num_layers; ++index) {
    const StackLayer& layer = block.layer(index);
    unsigned char* const set = block.exchange_set(first_set + index);
    const bool is_last = index + 1 == shape.num_layers;
#pragma unroll 1
    for (int number = 0; number < kProducts; ++number) {
      if (number == kO) attention.run(layer, set);
      if (block.tiles_of(number) == 0 && number != kQkv) continue;
      const bool is_end = is_last && number == kDown;
      if (number == kQkv || number == kGateUp) {
        const BlockRows& from = number == kQkv ? args.set.out : args.set.mid;
        const int pieces = block.product(kO).of_block;
        PieceRows rows{set + from.at, pieces, kTileRows * 4, from.block_stride, from.row_stride};
        if (number == kQkv)
          rows.base = block.exchange_set(first_set + index + kSets - 1) + from.at;  // the layer's before
        if (number == kQkv && index == 0) {
          rows = {reinterpret_cast<const unsigned char*>(p.hidden), pieces, kTileRows * 4, pieces * kTileRows * 4,
                  int64_t{shape.hidden_size} * 4};
        }
        multiplier.load_normed(rows);
      } else if (number == kO) {
        const int cols = block.product(kO).cols;
        multiplier.load({set + args.set.attention, cols / 8, 16, 0, int64_t{cols} * 2}, cols);
      } else {
        const BlockRows& from = args.set.inner;
        multiplier.load({set + from.at, block.product(kGateUp).of_block / 2, 16, from.block_stride, from.row_stride},
                        block.product(kDown).cols);
      }
      if (number == kQkv) {
        if (threadIdx.x % 32 == 0) hopper::barrier_arrive(block.seen());
        attention.prepare(layer);
      }
      multiplier.multiply(number);
      if (number == kQkv) {
        multiplier.finish(number, layer.qkv_bias, [&](int, int row, int tile, int column, float sum, bool exists) {
          write_pair<T>(sum, exists, [&](uint32_t pair) {
            store_relaxed_4(block.mine(set, args.set.qkv, row) + (tile * kTileRows + column) * 2, pair);
          });
        });
      } else if (number == kGateUp) {
        hopper::barrier_wait(block.cleaned(), index & 1);
        multiplier.finish_gated(
            number, layer.gate_up_bias, [&](int row, int tile, int column, float gate, float up, bool exists) {
              const float inner = silu_and_mul(widen(narrow<T>(gate)), widen(narrow<T>(up)));
              write_pair<T>(inner, exists, [&](uint32_t pair) {
                store_relaxed_4(block.mine(set, args.set.inner, row) + (tile * (kTileRows / 2) + column) * 2, pair);
              });
            });
        if (is_last) let_next_kernel_start();
      } else {
        const float* const bias = number == kO ? layer.o_bias : layer.down_bias;
        const BlockRows& to = number == kO ? args.set.mid : args.set.out;
        multiplier.finish(number, bias, [&](int output, int row, int tile, int column, float sum, bool exists) {
          if (!exists) return;
          const float updated = residual[output] + sum;
          residual[output] = updated;
          if (is_end) {
            p.hidden[hidden_at(row, tile, column)] = updated;
          } else {
            store_relaxed_4(block.mine(set, to, row) + (tile * kTileRows + column) * 4, __float_as_uint(updated));
          }
        });
      }
    }
  }
}

__device__ inline void copy_weights(const Block& block) {
  const StackParams& p = block.args.p;
  RingWriter ring(block);
  for (int index = 0; index < p.shape.num_layers; ++index) {
    const StackLayer& layer = block.layer(index);
    ring.write_norm(layer.input_norm, layer);
    ring.write_product(kQkv, layer.qkv);
    if (index == 0) {
      wait_for_earlier_kernels();  // who write the lengths and the pages
      if (threadIdx.x % 32 < block.rows()) block.seqlens[threadIdx.x % 32] = __ldcg(p.cache_seqlens + threadIdx.x % 32);
      __syncwarp();
    }
    ring.write_keys(layer);
    ring.write_product(kO, layer.o);
    ring.write_norm(layer.post_attention_norm, layer);
    ring.write_product(kGateUp, layer.gate_up);
    ring.write_product(kDown, layer.down);
  }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) layer_stack_kernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const int warp = threadIdx.x / 32;
  const int role = warp == kWarps ? 1 : 0;
  // Two of each: of the warps that compute, and of that which copies.
  const Block block{args, shared_address(memory), memory,
                    reinterpret_cast<int*>(memory + args.shared.seqlens) + role * kMostRows,
                    reinterpret_cast<ItemList*>(memory + args.shared.items) + role};
  // No kernel writes them.
  const int words = args.p.shape.num_layers * static_cast<int>(sizeof(StackLayer)) / 8;
  for (int i = threadIdx.x; i < words; i += kThreads) {
    block.at<uint64_t>(args.shared.layers)[i] = reinterpret_cast<const uint64_t*>(args.p.layers)[i];
  }
  if (threadIdx.x % 32 == 0 && (warp == 0 || warp == kWarps)) block.items->window_left = -2;
  if (threadIdx.x == 0) {
    for (int number = 0; number < kProducts; ++number) {
      block.at<int>(args.shared.tiles)[number] = block.product(number).tiles_of(block.index());
    }
    for (int slot = 0; slot < args.p.plan.ring_slots; ++slot) {
      hopper::barrier_init(block.full(slot), 1);
      hopper::barrier_init(block.empty(slot), kWarps);
    }
    hopper::barrier_init(block.seen(), kWarps);
    hopper::barrier_init(block.cleaned(), 1);
    hopper::fence_barrier_init();
  }
  __syncthreads();
  auto* const state = static_cast<int*>(args.p.exchange);
  if (warp >= kWarps) {
    hopper::give_registers<kOtherRegisters>();
    if (warp == kWarps) copy_weights(block);
    wait_for_earlier_kernels();
    if (warp == kWarps + 1) clean_sets(block, state);
    return;
  }
  hopper::take_registers<kConsumerRegisters>();
  wait_for_earlier_kernels();
  const int first_set = __ldcg(state);
  if (threadIdx.x < block.rows()) block.seqlens[threadIdx.x] = __ldcg(args.p.cache_seqlens + threadIdx.x);
  sync_consumers();
  compute<T, kHeadDim>(block, first_set);
  // Every block has read it: what this one has seen follows from their shares.
  if (block.index() == 0 && threadIdx.x == 0) {
    state[0] = (first_set + args.p.shape.num_layers) % kSets;
    for (int i = kSets; i > 1; --i) state[i] = state[i - 1];
    state[1] = block.rows();
  }
}

template <typename T, int kHeadDim>
Status launch(const KernelArgs& args, CUstream_st* stream) {
  const auto kernel = layer_stack_kernel<T, kHeadDim>;
  ONEPASS_RETURN_IF_ERROR(cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, args.shared.bytes), "layer stack"));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  // All blocks are on the GPU at once or none is: of two engines' kernels one waits for the other.
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.p.plan.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(args.shared.bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cuda_status(cudaLaunchKernelEx(&config, kernel, args), "layer stack");
}

template <typename T>
Status launch(const KernelArgs& args, CUstream_st* stream) {
  return args.p.shape.head_dim == 64 ? launch<T, 64>(args, stream) : launch<T, 128>(args, stream);
}

}  // namespace
}  // namespace layer_stack

Status run_layer_stack(const StackParams& params, CUstream_st* stream) {
  if (params.num_rows < 1 || params.num_rows > params.plan.max_rows) {
    return invalid_argument("layer stack: num_rows: expected 1 to ", params.plan.max_rows, ", found ", params.num_rows);
  }
  const StackShape& shape = params.shape;
  const StackPlan& plan = params.plan;
  const layer_stack::KernelArgs args{
      .p = params,
      .products = layer_stack::Products(shape, plan.blocks),
      .set = layer_stack::ExchangeSet(shape, plan.max_rows, plan.blocks),
      .shared = layer_stack::SharedLayout(shape, plan.max_rows, plan.blocks, plan.ring_slots),
      .box_keys = stack_box_keys(shape.page_size)};
  return shape.dtype == DType::kBF16 ? layer_stack::launch<__nv_bfloat16>(args, stream)
                                     : layer_stack::launch<__half>(args, stream);
}

Status init_stack_exchange(const StackPlan& plan, void* exchange, CUstream_st* stream) {
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaMemsetAsync(exchange, 0xff, static_cast<size_t>(plan.exchange_bytes), stream), "layer stack"));
  return cuda_status(cudaMemsetAsync(exchange, 0, layer_stack::kStateBytes, stream), "layer stack");
}

}  // namespace onepass
