// Launches an instantiation of the prefill kernel.
#pragma once

#include "attention/cuda/hopper_prefill_consumer.cuh"
#include "attention/cuda/hopper_prefill_gather.cuh"
#include "attention/cuda/hopper_prefill_producer.cuh"
#include "attention/cuda/hopper_prefill_scheduler.cuh"

namespace onepass::hopper {

template <typename Config>
__global__ __launch_bounds__(Config::kThreads, 1) void prefill_kernel(const __grid_constant__ PrefillArgs args,
                                                                      const __grid_constant__ PrefillMaps maps) {
  extern __shared__ char memory[];
  PrefillShared<Config> shared{(shared_address(memory) + 1023) / 1024 * 1024};
  if constexpr (Config::kPaired) {
    shared.to_other = uniform(address_in_cluster(shared.base, 1 - shared.rank()) - shared.base);
  }
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * Config::kConsumers;
    for (int i = 0; i < Config::kQuerySlots; ++i) {
      for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
        barrier_init(shared.query_full(i, consumer), 1);
        barrier_init(shared.query_empty(i, consumer), 4);
      }
    }
    for (int i = 0; i < Config::kKeyStages; ++i) {
      barrier_init(shared.key_full(i), Config::kGather ? Config::kGatherWarps : 1);
      barrier_init(shared.key_empty(i), kWarps);
      barrier_init(shared.other_key_empty(i), 1);
    }
    for (int i = 0; i < Config::kValueStages; ++i) {
      barrier_init(shared.value_full(i), Config::kGather ? Config::kGatherWarps : 1);
      barrier_init(shared.value_empty(i), kWarps);
      barrier_init(shared.other_value_empty(i), 1);
      barrier_init(shared.value_raw(i), 1);
    }
    for (int i = 0; i < Config::kTileSlots; ++i) {
      barrier_init(shared.tile_full(i), Config::kConsumers);  // each part's writer arrives
      barrier_init(shared.tile_empty(i), kWarps + (Config::kGather ? Config::kGatherWarps : 2));
      barrier_init(shared.other_tile_empty(i), 1);
      barrier_init(shared.tile_sent(i), Config::kConsumers);
    }
    barrier_init(shared.tile_wanted(), 1);
    fence_barrier_init();
  }
  if constexpr (Config::kPaired) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  wait_for_earlier_kernels();
  if (threadIdx.x < 128) {
    give_registers<Config::kProducerRegisters>();
    if (threadIdx.x < 32) {
      PrefillScheduler<Config>(args, maps, shared).run();
    } else if constexpr (Config::kGather) {
      if constexpr (!Config::kGatherGroup) PrefillGatherer<Config>(args, shared, threadIdx.x / 32 - 1).run();
    } else if (threadIdx.x < 64) {
      PrefillProducer<Config, false>(args, &maps.k, shared).run();
    } else if (threadIdx.x < 96) {
      PrefillProducer<Config, true>(args, &maps.v, shared).run();
    }
  } else if (!Config::kGatherGroup || threadIdx.x < 128 * (1 + Config::kConsumers)) {
    take_registers<Config::kConsumerRegisters>();
    PrefillConsumer<Config>(args, maps, shared).run();
  } else if constexpr (Config::kGatherGroup) {
    give_registers<Config::kGatherRegisters>();
    PrefillGatherer<Config>(args, shared, threadIdx.x / 32 - 4 * (1 + Config::kConsumers)).run();
  }
  if constexpr (Config::kPaired) {
    // Neither may end while the other still writes to its shared memory.
    __syncwarp();
    cluster_sync();
  }
}

template <typename Config>
cudaError_t launch_prefill(const PrefillArgs& args, const PrefillMaps& maps, int blocks, CUstream_st* stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(prefill_kernel<Config>, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSharedBytes);
  if (error != cudaSuccess) return error;
  // The next kernel in the stream may be launched before the one before it has ended; it waits at its start.
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(blocks);
  launch.blockDim = dim3(Config::kThreads);
  launch.dynamicSmemBytes = Config::kSharedBytes;
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = Config::kPaired ? 2 : 1;
  return cudaLaunchKernelEx(&launch, prefill_kernel<Config>, args, maps);
}

template <typename Config>
constexpr PrefillKernel make_prefill_kernel(int longest = 0, int shortest = 0) {
  return {.head_dim = Config::kHeadDim,
          .head_dim_v = Config::kHeadDimV,
          .rows = Config::kRows,
          .keys = Config::kKeys,
          .paired = Config::kPaired,
          .shortest = shortest,
          .longest = longest,
          .smallest_page = Config::kSmallestPage,
          .gathers = Config::kGather,
          .launch = launch_prefill<Config>,
          .launch_softcap = launch_prefill<WithSoftcap<Config>>};
}

}  // namespace onepass::hopper
