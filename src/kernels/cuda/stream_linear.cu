// A thread block goes from tile to tile of 8 or 16 rows of the weights, its 8 warps side by side along the columns.
// Each lane copies pieces of 16 bytes into a ring of its own in shared memory, ahead of the sums and across tiles, so
// that a tile's end never lets the memory rest; x lies in shared memory as a whole.
//
// The weights are the A operand of m16n8k16 and 8 rows of x its B. Where a column stands within an instruction is free
// as long as both operands agree, so a lane's 16 bytes, 8 neighbouring columns, serve two instructions as they are:
// neither operand is shuffled, and one row of x costs what 8 do.
//
// A norm before the product is each block's own: its rows of x, a few KB that are in the L2 cache, while its first
// weights are on the way. A gated activation behind it makes half of a tile's rows gates and half what they let
// through.
#include "kernels/cuda/stream_linear.h"

#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/silu.cuh"
#include "kernels/cuda/stream_linear_norm.cuh"
#include "kernels/cuda/stream_linear_ptx.cuh"

namespace onepass {
namespace {

constexpr int kWarps = kStreamWarps;
constexpr int kThreads = kStreamThreads;
constexpr int kChunk = kStreamChunk;

template <int kTileRows, int kXTiles>
struct Layout {
  static constexpr int kPieces = kTileRows / 4;  // of a lane and a stage
  static constexpr int kStages = stream_stages(kTileRows);
  static constexpr int kOutputs = kTileRows * 8 * kXTiles;  // of a tile
  static constexpr int kSumPitch = stream_sum_pitch(kTileRows);
  static constexpr int kSums = kSumPitch * 8 * kXTiles;  // floats of a warp
  // The warps' sums and the cluster's are kept for two tiles in turn.
  static constexpr int kSumsAt = 0;                                                      // [2][kWarps][kSums]
  static constexpr int kPartsAt = 2 * stream_sums_bytes(kTileRows, kXTiles);             // [2][cluster][share]
  static constexpr int kRingAt = kPartsAt + 2 * stream_parts_bytes(kTileRows, kXTiles);  // and x behind it
};

template <typename T, int kTileRows, int kXTiles>
__global__ void __launch_bounds__(kThreads, kXTiles == 1 ? 3 : 2)
    stream_linear_kernel(const __grid_constant__ CudaLinearParams p, const int ring_bytes) {
  using L = Layout<kTileRows, kXTiles>;
  constexpr int kHalves = kTileRows / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t shared_base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const int blocks = cluster_size(), rank = cluster_rank();
  // Of a tile's rows, gated, the first half are gates and the second theirs to let through.
  const int tile_cols = p.gated ? kTileRows / 2 : kTileRows;  // of y
  const int y_cols = static_cast<int>(p.gated ? p.rows / 2 : p.rows);
  const int tiles = (y_cols + tile_cols - 1) / tile_cols;
  const int first_tile = blockIdx.x / blocks, tile_step = gridDim.x / blocks;
  const int64_t first_x = int64_t{blockIdx.y} * 8 * kXTiles;
  const int x_rows = static_cast<int>(p.num_rows - first_x < 8 * kXTiles ? p.num_rows - first_x : 8 * kXTiles);

  // This warp's chunks, and those of its block.
  const int64_t all_chunks = (p.cols + kChunk - 1) / kChunk;
  const auto slice_begin = [&](int slice) { return static_cast<int>(slice * all_chunks / (blocks * kWarps)); };
  const int begin = slice_begin(rank * kWarps + warp), end = slice_begin(rank * kWarps + warp + 1);
  const int block_begin = slice_begin(rank * kWarps), block_end = slice_begin((rank + 1) * kWarps);

  if (blocks > 1) cluster_arrive();

  // The copies run ahead of the sums by kStages - 1 stages.
  const uint32_t ring = shared_base + L::kRingAt + warp * (ring_bytes / kWarps) + lane * 16;
  const T* const weight = static_cast<const T*>(p.weight);
  const uint64_t policy = gridDim.y == 1 ? kEvictFirst : kEvictNormal;  // whether they are read a second time
  int copy_tile = begin < end ? first_tile : tiles, copy_chunk = begin, copy_stage = 0;
  int copy_row[kHalves];
  bool is_second[kHalves];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    is_second[half] = half * 8 + group >= tile_cols;
    copy_row[half] = first_tile * tile_cols + half * 8 + group - (is_second[half] ? tile_cols : 0);
  }
  const auto copy_next = [&] {
    if (copy_tile < tiles) {
      const int column = copy_chunk * kChunk + member * 8;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool has_row = copy_row[half] < y_cols;
        const T* from = weight + (has_row ? copy_row[half] + (is_second[half] ? y_cols : 0) : 0) * p.cols;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const bool exists = has_row && column + j * 32 < p.cols;
          copy_piece(ring + (copy_stage * L::kPieces + j * kHalves + half) * 512, from + (exists ? column + j * 32 : 0),
                     exists, policy);
        }
      }
      if (++copy_chunk == end) {
        copy_chunk = begin, copy_tile += tile_step;
#pragma unroll
        for (int half = 0; half < kHalves; ++half) copy_row[half] += tile_step * tile_cols;
      }
    }
    end_copy_group();
    copy_stage = copy_stage + 1 == L::kStages ? 0 : copy_stage + 1;
  };
  for (int i = 0; i < L::kStages - 1; ++i) copy_next();

  const uint32_t x_base = shared_base + L::kRingAt + ring_bytes;
  const int pitch = static_cast<int>((all_chunks + blocks - 1) / blocks * kChunk * 2 + kStreamXPadding);
  const int pieces = (block_end - block_begin) * (kChunk / 8);
  if (kXTiles == 1 && p.norm != nullptr) StreamNorm<T>::touch_weight(p);
  wait_for_earlier_kernels();
  // Not before: the next kernel's blocks go where there is room, and while blocks of two kernels before it are still
  // about, that is on some multiprocessors only.
  let_next_kernel_start();
  const auto x_piece = [&](int row, int piece, bool& exists) {
    const int64_t column = int64_t{block_begin} * kChunk + piece * 8;
    exists = column < p.cols;
    return static_cast<const T*>(p.x) + (first_x + row) * p.x_row_stride + (exists ? column : 0);
  };
  if (kXTiles == 1 && p.norm != nullptr) {
    StreamNorm<T>::run(p, first_x, x_rows, pieces * 8, x_base, pitch, reinterpret_cast<float*>(shared + L::kSumsAt));
  } else if (x_rows == 1 && pieces <= 2 * kThreads) {
    // By registers: a copy would be known to have come only when all weights on the way have.
    uint4 x[2] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int piece = n * kThreads + threadIdx.x;
      bool exists = false;
      const T* const from = x_piece(0, piece, exists);
      if (piece < pieces && exists) x[n] = __ldcg(reinterpret_cast<const uint4*>(from));
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int piece = n * kThreads + threadIdx.x;
      if (piece < pieces) store_shared_16(x_base + piece * 16, x[n]);
    }
  } else {
    for (int row = 0; row < x_rows; ++row) {
      for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
        bool exists = false;
        const T* const from = x_piece(row, piece, exists);
        copy_piece(x_base + row * pitch + piece * 16, from, exists, kEvictNormal);
      }
    }
    end_copy_group();
    wait_for_copies<0>();
  }
  __syncthreads();

  // A tile's outputs are numbered by rows of x; gated, a gate's is followed by that which it lets through.
  const auto row_of = [&](int output) {
    const int row = output % kTileRows;
    return p.gated ? row / 2 + row % 2 * tile_cols : row;
  };
  // What is added to an output's sum, the bias and then what y has been: asked for before the sum is known.
  struct Added {
    float bias = 0.0f, y = 0.0f;
  };
  const auto place_of = [&](int tile, int output, int64_t& at) {
    const int col = tile * tile_cols + (output % kTileRows >> (p.gated ? 1 : 0)), x_row = output / kTileRows;
    at = (first_x + x_row) * p.y_row_stride + col;
    return col < y_cols && x_row < x_rows;
  };
  const auto load_added = [&](int tile, int output) {
    Added added;
    int64_t at;
    if (!place_of(tile, output, at)) return added;
    if (p.bias != nullptr) {
      const int row = row_of(output);
      added.bias = p.bias[int64_t{tile} * tile_cols + row + (row >= tile_cols ? y_cols - tile_cols : 0)];
    }
    if (p.accumulate) {
      added.y = p.y_dtype == DType::kF32 ? __ldcg(static_cast<const float*>(p.y) + at)
                                         : widen(static_cast<const T*>(p.y)[at]);
    }
    return added;
  };
  // `sum` with its bias; `other`: that of the next output, which is used when gated.
  const auto write_out = [&](int tile, int output, float sum, float other, float y_before) {
    int64_t at;
    if (!place_of(tile, output, at)) return;
    if (p.gated) {
      const float gate = widen(narrow<T>(sum)), up = widen(narrow<T>(other));
      if (output % 2 == 0) static_cast<T*>(p.y)[at] = narrow<T>(silu_and_mul(gate, up));
      return;
    }
    if (p.accumulate) sum += y_before;
    if (p.y_dtype == DType::kF32) {
      static_cast<float*>(p.y)[at] = sum;
    } else {
      static_cast<T*>(p.y)[at] = narrow<T>(sum);
    }
  };
  // Outputs rank * share .. (rank + 1) * share - 1 of each tile are summed over the cluster and written by this block.
  const int share = L::kOutputs / blocks;
  float* const parts = reinterpret_cast<float*>(shared + L::kPartsAt);
  const auto write_share = [&](int tile, int turn) {
    const auto sum_of = [&](int i) {
      float sum = 0.0f;
      for (int block = 0; block < blocks; ++block) sum += parts[turn * L::kOutputs + block * share + i];
      return sum;
    };
    for (int i = threadIdx.x; i < share; i += kThreads) {
      const Added added = load_added(tile, rank * share + i);
      const float other = p.gated ? sum_of(i | 1) + load_added(tile, rank * share + (i | 1)).bias : 0.0f;
      write_out(tile, rank * share + i, sum_of(i) + added.bias, other, added.y);
    }
  };

  const uint32_t x_at = x_base + group * pitch + member * 16;
  int stage = 0, turn = 0;
  for (int tile = first_tile; tile < tiles; tile += tile_step, turn ^= 1) {
    Added added;
    if (blocks == 1 && L::kOutputs <= kThreads && threadIdx.x < L::kOutputs) added = load_added(tile, threadIdx.x);
    float sums[2][kXTiles][4] = {};  // two chains of products, each half as long
    for (int chunk = begin; chunk < end; ++chunk) {
      wait_for_copies<L::kStages - 2>();
      uint4 w[2][kHalves];
#pragma unroll
      for (int i = 0; i < L::kPieces; ++i) {
        w[i / kHalves][i % kHalves] = load_shared_16(ring + (stage * L::kPieces + i) * 512);
      }
      copy_next();  // into the stage that was read before this one
      stage = stage + 1 == L::kStages ? 0 : stage + 1;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint4 low = w[j][0], high = kHalves == 2 ? w[j][kHalves - 1] : uint4{0, 0, 0, 0};
#pragma unroll
        for (int n = 0; n < kXTiles; ++n) {
          uint4 b{0, 0, 0, 0};
          if (n * 8 + group < x_rows) {
            b = load_shared_16(x_at + n * 8 * pitch + (chunk - block_begin) * kChunk * 2 + j * 64);
          }
          mma_m16n8k16(sums[j][n], low.x, high.x, low.y, high.y, b.x, b.y, T());
          mma_m16n8k16(sums[j][n], low.z, high.z, low.w, high.w, b.z, b.w, T());
        }
      }
    }
    float* const of_warps = reinterpret_cast<float*>(shared + L::kSumsAt) + turn * kWarps * L::kSums;
#pragma unroll
    for (int n = 0; n < kXTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i) {
        of_warps[warp * L::kSums + (n * 8 + member * 2 + i % 2) * L::kSumPitch + group + i / 2 * 8] =
            sums[0][n][i] + sums[1][n][i];
      }
    }
    // One barrier a tile: what is written in this turn was read two tiles ago, before the last barrier.
    __syncthreads();
    if (blocks > 1) {
      cluster_wait();
      if (tile != first_tile) write_share(tile - tile_step, turn ^ 1);
    }
    for (int output = threadIdx.x; output < L::kOutputs; output += kThreads) {
      const float* from = of_warps + output / kTileRows * L::kSumPitch + row_of(output);
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += from[i * L::kSums];
      if (blocks == 1) {
        if (L::kOutputs > kThreads) added = load_added(tile, output);
        sum += added.bias;
        write_out(tile, output, sum, p.gated ? __shfl_down_sync(0xffffffffu, sum, 1) : 0.0f, added.y);
      } else {
        store_in_block(parts + turn * L::kOutputs + rank * share + output % share, output / share, sum);
      }
    }
    if (blocks > 1) cluster_arrive();
  }
  if (blocks > 1) {
    cluster_wait();
    const int done = (tiles - first_tile + tile_step - 1) / tile_step;
    if (done > 0) write_share(first_tile + (done - 1) * tile_step, turn ^ 1);
  }
}

template <typename T, int kTileRows, int kXTiles>
Status launch(const CudaLinearParams& p, const StreamLinearPlan& plan, const GpuInfo& gpu, CUstream_st* stream) {
  const auto kernel = stream_linear_kernel<T, kTileRows, kXTiles>;
  const int64_t most_bytes = stream_linear_shared_bytes(p.cols, p.num_rows, plan);
  if (p.norm != nullptr && !stream_linear_can_norm(p.cols, plan)) {
    return unimplemented("linear: norm: expected more than ", kStreamNormCols / 32, " and at most ", kStreamNormCols,
                         " cols, no cluster and 8 rows of x at a time for a norm within the product, found ", p.cols,
                         " and ", to_string(plan));
  }
  if (most_bytes > gpu.shared_memory_bytes) {
    return invalid_argument("linear: cols: expected what fits into ", gpu.shared_memory_bytes,
                            " bytes of shared memory, found ", p.cols, ", which takes ", most_bytes);
  }
  ONEPASS_RETURN_IF_ERROR(cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_bytes)),
      "linear"));
  int64_t clusters = int64_t{gpu.multiprocessors} * plan.blocks_per_sm;
  if (plan.cluster > 1) {
    // One too many would run alone at the end.
    ONEPASS_ASSIGN_OR_RETURN(const int resident, clusters_at_once("linear", kernel,
                                                                  {.threads = kThreads,
                                                                   .shared_bytes = static_cast<size_t>(most_bytes),
                                                                   .cluster = plan.cluster}));
    clusters = std::max<int64_t>(1, std::min<int64_t>(resident, clusters / plan.cluster));
  }
  const int64_t tile_cols = p.gated ? kTileRows / 2 : kTileRows, tiles = (p.y_cols() + tile_cols - 1) / tile_cols;
  clusters = std::min(tiles, clusters);
  const dim3 grid(static_cast<unsigned>(clusters * plan.cluster),
                  static_cast<unsigned>((p.num_rows + 8 * kXTiles - 1) / (8 * kXTiles)));
  const int ring_bytes = stream_ring_bytes(p.rows, p.cols, clusters, plan);
  const auto bytes = static_cast<size_t>(most_bytes - kStreamRingBytes + ring_bytes);
  return launch_early("linear", kernel,
                      {.grid = grid, .threads = kThreads, .shared_bytes = bytes, .cluster = plan.cluster}, stream, p,
                      ring_bytes);
}

template <typename T, int kTileRows>
Status launch(const CudaLinearParams& p, const StreamLinearPlan& plan, const GpuInfo& gpu, CUstream_st* stream) {
  if (plan.x_tiles == 1) return launch<T, kTileRows, 1>(p, plan, gpu, stream);
  if (plan.x_tiles == 2) return launch<T, kTileRows, 2>(p, plan, gpu, stream);
  return launch<T, kTileRows, 4>(p, plan, gpu, stream);
}

}  // namespace

Status run_stream_linear(const CudaLinearParams& p, const StreamLinearPlan& plan, const GpuInfo& gpu,
                         CUstream_st* stream) {
  if (p.dtype == DType::kBF16) {
    return plan.tile_rows == 8 ? launch<__nv_bfloat16, 8>(p, plan, gpu, stream)
                               : launch<__nv_bfloat16, 16>(p, plan, gpu, stream);
  }
  return plan.tile_rows == 8 ? launch<__half, 8>(p, plan, gpu, stream) : launch<__half, 16>(p, plan, gpu, stream);
}

}  // namespace onepass
