// A thread block goes from tile to tile of some rows of the weights. One warp has the copy engine bring, 64 columns at
// a time, the tile's weights and all rows of x into a ring in shared memory, ahead of the products and across tiles, so
// that a tile's end never lets the memory rest; a warpgroup for each 64 rows of x multiplies what has come:
// D[x, weights] += A B, x being A. The first weights, a ring full, are on their way before the kernels before this one
// have ended.
//
// All blocks read all of x. A cluster's blocks do so together: each brings a share of x to all of them (multicast), and
// a place in the ring is filled again when it is empty in all.
#include "kernels/cuda/hopper_linear.h"

#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/silu.cuh"
#include "tensor/cuda/hopper_ptx.cuh"
#include "tensor/cuda/hopper_wgmma.cuh"
#include "tensor/cuda/tensor_map.h"

namespace onepass {
namespace {

using namespace hopper;

constexpr int kPanel = 64;           // columns of a stage: 128 bytes of each row
constexpr int kMostShared = 232448;  // of a thread block
constexpr int kWantedBytes =
    73728;  // of weights on their way to a multiprocessor; twice what memory's latency asks for

template <typename T_, int kTileRows_, int kXTiles_, bool kGated_>
struct LinearConfig {
  using T = T_;
  static constexpr int kTileRows = kTileRows_;
  static constexpr int kXTiles = kXTiles_;  // of 64 rows of x, a warpgroup each
  static constexpr bool kGated = kGated_;   // half of a tile's rows are gates, half what they let through
  static constexpr int kTileCols = kGated ? kTileRows / 2 : kTileRows;  // of y
  static constexpr int kConsumers = 4 * kXTiles;                        // warps
  static constexpr int kThreads = 32 * (kConsumers + 1);
  static constexpr int kXBytes = kXTiles * 64 * 128;
  static constexpr int kStageBytes = kXBytes + kTileRows * 128;
  static constexpr int kRoom = (kMostShared - 1024 - 512) / kStageBytes;
  static constexpr int kWanted = std::max(5, (kWantedBytes + kTileRows * 128 - 1) / (kTileRows * 128));
  static constexpr int kStages = std::min(kRoom, kWanted);
  static constexpr int kSharedBytes = 1024 + kStages * (kStageBytes + 16);
  static_assert(kStages >= 4 && kTileCols % 8 == 0);
};

struct LinearArgs {
  const float* bias = nullptr;
  void* y = nullptr;
  int64_t y_row_stride = 0;
  int32_t num_rows = 0;
  int32_t y_cols = 0;
  int32_t steps = 0;  // stages of a tile
  int32_t tiles = 0;
  int32_t cluster = 1;
  bool y_float = false;
  bool accumulate = false;
};

struct LinearMaps {
  CUtensorMap x;
  CUtensorMap weight;
};

template <typename Config>
struct LinearRing {
  uint32_t base;
  __device__ uint32_t x(int slot) const { return base + slot * Config::kStageBytes; }
  __device__ uint32_t weight(int slot) const { return x(slot) + Config::kXBytes; }
  __device__ uint32_t full(int slot) const { return base + Config::kStages * Config::kStageBytes + 8 * slot; }
  __device__ uint32_t empty(int slot) const { return full(Config::kStages + slot); }
};

template <typename Config>
class LinearProducer {
 public:
  __device__ LinearProducer(const LinearArgs& args, const LinearMaps& maps, LinearRing<Config> ring, int first_group,
                            int group_step)
      : args_(args), maps_(maps), ring_(ring), first_group_(first_group), group_step_(group_step) {}

  // One thread.
  __device__ void run() const {
    const int groups = (args_.tiles + args_.cluster - 1) / args_.cluster;
    const int stages = (groups - first_group_ + group_step_ - 1) / group_step_ * args_.steps;
    prefetch_tensor_map(&maps_.weight);
    prefetch_tensor_map(&maps_.x);
    const int ahead = min(stages, Config::kStages);
    Place place{.group = first_group_};
    for (int i = 0; i < ahead; ++i, advance(place)) copy_weights(place);
    wait_for_earlier_kernels();
    Place of_x{.group = first_group_};
    for (int i = 0; i < ahead; ++i, advance(of_x)) copy_x(of_x);
    for (int i = ahead; i < stages; ++i, advance(place)) {
      barrier_wait(ring_.empty(place.slot), place.parity ^ 1);
      copy_weights(place);
      copy_x(place);
    }
  }

 private:
  struct Place {
    int slot = 0;
    uint32_t parity = 0;
    int step = 0;
    int group = 0;
  };
  __device__ void advance(Place& place) const {
    if (++place.slot == Config::kStages) place.slot = 0, place.parity ^= 1;
    if (++place.step == args_.steps) place.step = 0, place.group += group_step_;
  }

  // Tells what the stage waits for, x's part too.
  __device__ void copy_weights(const Place& place) const {
    const uint32_t full = ring_.full(place.slot), to = ring_.weight(place.slot);
    const int first_row = (place.group * args_.cluster + static_cast<int>(rank())) * Config::kTileCols;
    barrier_arrive_expect(full, Config::kStageBytes);
    // What lies beyond the last row, as for blocks of a cluster that have no tile, is zeros and not read.
    copy_box_2d(to, &maps_.weight, place.step * kPanel, first_row, full, kEvictFirst);
    if constexpr (Config::kGated) {
      copy_box_2d(to + Config::kTileCols * 128, &maps_.weight, place.step * kPanel, args_.y_cols + first_row, full,
                  kEvictFirst);
    }
  }
  __device__ void copy_x(const Place& place) const {
    const uint32_t full = ring_.full(place.slot), to = ring_.x(place.slot);
    if (args_.cluster == 1) return copy_box_2d(to, &maps_.x, place.step * kPanel, 0, full, kEvictLast);
    const int rows = Config::kXTiles * 64 / args_.cluster, first_row = static_cast<int>(rank()) * rows;
    copy_box_2d_multicast(to + first_row * 128, &maps_.x, place.step * kPanel, first_row, full,
                          static_cast<uint16_t>((1 << args_.cluster) - 1), kEvictLast);
  }
  __device__ uint32_t rank() const { return args_.cluster == 1 ? 0 : cluster_rank(); }

  const LinearArgs& args_;
  const LinearMaps& maps_;
  const LinearRing<Config> ring_;
  const int first_group_, group_step_;
};

template <typename Config>
class LinearConsumer {
  using T = typename Config::T;
  static constexpr int kSums = Config::kTileRows / 2;  // of a thread
  // What y has been is asked for before the products where there are registers for it.
  static constexpr bool kEarly = Config::kTileRows <= 64 && !Config::kGated;

 public:
  __device__ LinearConsumer(const LinearArgs& args, LinearRing<Config> ring)
      : args_(args), ring_(ring), lane_(threadIdx.x % 32), warpgroup_(threadIdx.x / 128) {}

  __device__ void run(int first_group, int group_step, uint32_t rank) {
    float sums[kSums];
    float before[kEarly ? kSums : 1];
    for (int group = first_group; group * args_.cluster < args_.tiles; group += group_step) {
      const int first_col = (group * args_.cluster + static_cast<int>(rank)) * Config::kTileCols;
      if constexpr (kEarly) load_before(first_col, before);
      for (int step = 0; step < args_.steps; ++step) {
        barrier_wait(ring_.full(slot_), parity_);
        const uint64_t x = row_descriptor(ring_.x(slot_) + warpgroup_ * 64 * 128);
        const uint64_t weight = row_descriptor(ring_.weight(slot_));
        wgmma_touch(sums);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kPanel / 16; ++i) wgmma_scores<T>(sums, x + 2 * i, weight + 2 * i, i > 0 || step > 0);
        wgmma_commit();
        // Those of the stage before are done, which is empty then.
        wgmma_wait<1>();
        if (step > 0) release(last_slot_);
        last_slot_ = slot_;
        if (++slot_ == Config::kStages) slot_ = 0, parity_ ^= 1;
      }
      wgmma_wait<0>();
      wgmma_touch(sums);
      release(last_slot_);
      write(first_col, sums, before);
    }
  }

 private:
  // In all thread blocks of the cluster, as each brings a part of all others' x.
  __device__ void release(int slot) const {
    const uint32_t empty = ring_.empty(slot);
    if (args_.cluster == 1) {
      if (lane_ == 0) barrier_arrive(empty);
    } else if (lane_ < args_.cluster) {
      barrier_arrive_cluster_relaxed(address_in_cluster(empty, lane_));
    }
  }

  __device__ int row(int half) const { return threadIdx.x / 32 * 16 + lane_ / 4 + 8 * half; }
  // Of y, for the i-th 8 columns of a tile: this thread's two.
  __device__ int col(int first_col, int i) const { return first_col + 8 * i + lane_ % 4 * 2; }

  // Two neighbouring elements of y; `both`: whether there is a second.
  __device__ float2 load_y(int64_t at, bool both) const {
    if (args_.y_float) {
      const float* y = static_cast<const float*>(args_.y) + at;
      return both ? *reinterpret_cast<const float2*>(y) : make_float2(*y, 0.0f);
    }
    const T* y = static_cast<const T*>(args_.y) + at;
    return make_float2(widen(y[0]), both ? widen(y[1]) : 0.0f);
  }
  __device__ void store_y(int64_t at, bool both, float first, float second) const {
    if (args_.y_float) {
      float* y = static_cast<float*>(args_.y) + at;
      if (both) {
        *reinterpret_cast<float2*>(y) = make_float2(first, second);
      } else {
        *y = first;
      }
      return;
    }
    T* y = static_cast<T*>(args_.y) + at;
    if (both) {
      *reinterpret_cast<uint32_t*>(y) = pack<T>(first, second);
    } else {
      *y = narrow<T>(first);
    }
  }

  __device__ void load_before(int first_col, float (&before)[kEarly ? kSums : 1]) const {
    if (!args_.accumulate) return;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = col(first_col, i);
        float2 y = make_float2(0.0f, 0.0f);
        if (row(half) < args_.num_rows && c < args_.y_cols) {
          y = load_y(row(half) * args_.y_row_stride + c, c + 1 < args_.y_cols);
        }
        before[kEarly ? 4 * i + 2 * half : 0] = y.x;
        before[kEarly ? 4 * i + 2 * half + 1 : 0] = y.y;
      }
    }
  }

  __device__ void write(int first_col, float (&sums)[kSums], const float (&before)[kEarly ? kSums : 1]) const {
#pragma unroll
    for (int i = 0; i < Config::kTileCols / 8; ++i) {
      const int c = col(first_col, i);
      if (c >= args_.y_cols) continue;
      const bool both = c + 1 < args_.y_cols;
      constexpr int kOthers = Config::kTileCols / 2;  // sums further on, gated, is what the gate lets through
      if (args_.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (j % 2 == 1 && !both) continue;
          sums[4 * i + j] += args_.bias[c + j % 2];
          if constexpr (Config::kGated) sums[kOthers + 4 * i + j] += args_.bias[args_.y_cols + c + j % 2];
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row(half) >= args_.num_rows) continue;
        const int64_t at = row(half) * args_.y_row_stride + c;
        float out[2] = {sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]};
        if constexpr (Config::kGated) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float up = sums[kOthers + 4 * i + 2 * half + j];
            out[j] = silu_and_mul(widen(narrow<T>(out[j])), widen(narrow<T>(up)));
          }
        } else if (args_.accumulate) {
          if constexpr (kEarly) {
            out[0] += before[4 * i + 2 * half], out[1] += before[4 * i + 2 * half + 1];
          } else {
            const float2 y = load_y(at, both);
            out[0] += y.x, out[1] += y.y;
          }
        }
        store_y(at, both, out[0], out[1]);
      }
    }
  }

  const LinearArgs& args_;
  const LinearRing<Config> ring_;
  const int lane_;
  const int warpgroup_;
  int slot_ = 0;
  int last_slot_ = 0;
  uint32_t parity_ = 0;
};

template <typename Config>
__global__ __launch_bounds__(Config::kThreads, 1) void hopper_linear_kernel(const __grid_constant__ LinearArgs args,
                                                                            const __grid_constant__ LinearMaps maps) {
  extern __shared__ char memory[];
  const LinearRing<Config> ring{(shared_address(memory) + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Config::kStages; ++slot) {
      barrier_init(ring.full(slot), 1);
      barrier_init(ring.empty(slot), Config::kConsumers * args.cluster);
    }
    fence_barrier_init();
  }
  if (args.cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int first_group = blockIdx.x / args.cluster, group_step = gridDim.x / args.cluster;
  if (threadIdx.x >= 32 * Config::kConsumers) {
    if (threadIdx.x % 32 == 0) {
      LinearProducer<Config>(args, maps, ring, first_group, group_step).run();
    } else {
      wait_for_earlier_kernels();
    }
  } else {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    LinearConsumer<Config>(args, ring).run(first_group, group_step, args.cluster == 1 ? 0 : cluster_rank());
  }
  // None may end while others bring it x, or tell it that they have room.
  if (args.cluster > 1) {
    __syncwarp();
    cluster_sync();
  }
}

template <typename Config>
Status launch(const LinearArgs& args, const LinearMaps& maps, const GpuInfo& gpu, CUstream_st* stream) {
  const auto kernel = hopper_linear_kernel<Config>;
  ONEPASS_RETURN_IF_ERROR(cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes), "linear"));
  LaunchShape shape{.threads = Config::kThreads, .shared_bytes = Config::kSharedBytes, .cluster = args.cluster};
  int clusters = gpu.multiprocessors;
  if (args.cluster > 1) {
    ONEPASS_ASSIGN_OR_RETURN(clusters, clusters_at_once("linear", kernel, shape));
  }
  clusters = std::clamp((args.tiles + args.cluster - 1) / args.cluster, 1, std::max(1, clusters));
  shape.grid = dim3(clusters * args.cluster);
  return launch_early("linear", kernel, shape, stream, args, maps);
}

template <typename T, int kTileRows>
Status run(const CudaLinearParams& p, const HopperLinearPlan& plan, const GpuInfo& gpu, CUstream_st* stream) {
  const int x_tiles = p.num_rows > kHopperWarpgroupRows ? 2 : 1;
  const int tile_cols = p.gated ? kTileRows / 2 : kTileRows;
  LinearMaps maps;
  {
    const int64_t sizes[] = {p.cols, p.num_rows};
    const int64_t strides[] = {p.x_row_stride};
    const int box[] = {kPanel, 64 * x_tiles / plan.cluster};
    ONEPASS_ASSIGN_OR_RETURN(maps.x,
                             make_tensor_map(p.x, p.dtype, sizes, strides, box, CU_TENSOR_MAP_L2_PROMOTION_L2_128B));
  }
  {
    const int64_t sizes[] = {p.cols, p.rows};
    const int64_t strides[] = {p.cols};
    const int box[] = {kPanel, tile_cols};
    ONEPASS_ASSIGN_OR_RETURN(maps.weight, make_tensor_map(p.weight, p.dtype, sizes, strides, box));
  }
  LinearArgs args;
  args.bias = p.bias;
  args.y = p.y;
  args.y_row_stride = p.y_row_stride;
  args.num_rows = static_cast<int32_t>(p.num_rows);
  args.y_cols = static_cast<int32_t>(p.y_cols());
  args.steps = static_cast<int32_t>((p.cols + kPanel - 1) / kPanel);
  args.tiles = static_cast<int32_t>((p.y_cols() + tile_cols - 1) / tile_cols);
  args.cluster = plan.cluster;
  args.y_float = p.y_dtype == DType::kF32;
  args.accumulate = p.accumulate;
  if (x_tiles == 1) {
    return p.gated ? launch<LinearConfig<T, kTileRows, 1, true>>(args, maps, gpu, stream)
                   : launch<LinearConfig<T, kTileRows, 1, false>>(args, maps, gpu, stream);
  }
  return p.gated ? launch<LinearConfig<T, kTileRows, 2, true>>(args, maps, gpu, stream)
                 : launch<LinearConfig<T, kTileRows, 2, false>>(args, maps, gpu, stream);
}

template <typename T>
Status run(const CudaLinearParams& p, const HopperLinearPlan& plan, const GpuInfo& gpu, CUstream_st* stream) {
  switch (plan.tile_rows) {
    case 32:
      return run<T, 32>(p, plan, gpu, stream);
    case 48:
      return run<T, 48>(p, plan, gpu, stream);
    case 64:
      return run<T, 64>(p, plan, gpu, stream);
    case 96:
      return run<T, 96>(p, plan, gpu, stream);
    case 128:
      return run<T, 128>(p, plan, gpu, stream);
    case 192:
      return run<T, 192>(p, plan, gpu, stream);
    default:
      return run<T, 224>(p, plan, gpu, stream);
  }
}

}  // namespace

Status run_hopper_linear(const CudaLinearParams& p, const HopperLinearPlan& plan, const GpuInfo& gpu,
                         CUstream_st* stream) {
  if (gpu.compute_capability != 90 || p.norm != nullptr || p.num_rows > kHopperLinearRows || !is_valid(plan)) {
    return unimplemented("linear: ", to_string(plan),
                         ": expected a GPU of compute capability 9.0, no norm and at most ", kHopperLinearRows,
                         " rows of x, found ", gpu.compute_capability / 10, ".", gpu.compute_capability % 10,
                         p.norm != nullptr ? ", a norm" : "", " and ", p.num_rows);
  }
  return p.dtype == DType::kBF16 ? run<__nv_bfloat16>(p, plan, gpu, stream) : run<__half>(p, plan, gpu, stream);
}

}  // namespace onepass
