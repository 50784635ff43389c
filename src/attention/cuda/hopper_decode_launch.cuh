// Which variant of the decode kernel serves a launch, and the launch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/cuda/hopper_decode_kernel.cuh"
#include "tensor/cuda/cuda_status.h"

namespace onepass::hopper_decode {

template <typename R, typename Short, int kColumnTiles, bool kBf16>
Status launch_variant(const RunArgs& args, int blocks, CUstream_st* stream) {
  const auto kernel = decode_kernel<R, Short, kColumnTiles, kBf16>;
  constexpr int kSharedBytes =
      std::max(sizeof(SharedMemory<R, kColumnTiles>), sizeof(SharedMemory<Short, kColumnTiles>));
  ONEPASS_RETURN_IF_ERROR(cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "hopper-decode"));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cuda_status(cudaLaunchKernelEx(&config, kernel, args), "hopper-decode");
}

template <typename R, int kColumnTiles, typename Short = R>
Status launch_variant(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  return launch.bf16 ? launch_variant<R, Short, kColumnTiles, true>(args, launch.blocks, stream)
                     : launch_variant<R, Short, kColumnTiles, false>(args, launch.blocks, stream);
}

// Chunks as long as the boxes; without boxes, rows of 128 bytes are too few for the bookkeeping of 16 keys.
template <int kHeadDim, int kColumnTiles, int kTeamWarps>
Status launch_variant(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  constexpr int kKeys = kHeadDim < 128 ? 32 : 16;
  if constexpr (kHeadDim <= 128) {
    if constexpr (kHeadDim == 128 && kTeamWarps == 1 && kColumnTiles == 1) {
      if (args.box_keys == 32) {
        return launch_variant<Ring<128, 1, 32, true>, kColumnTiles, Ring<128, 1, 16, true, false, true>>(args, launch,
                                                                                                         stream);
      }
    } else if (args.box_keys == 32) {
      return launch_variant<Ring<kHeadDim, kTeamWarps, 32, true>, kColumnTiles>(args, launch, stream);
    }
  }
  if constexpr (kHeadDim >= 128) {
    if (args.box_keys == 16) {
      return launch_variant<Ring<kHeadDim, kTeamWarps, 16, true>, kColumnTiles>(args, launch, stream);
    }
  }
  return launch_variant<Ring<kHeadDim, kTeamWarps, kKeys, false>, kColumnTiles>(args, launch, stream);
}

// Two KV heads of dimension 64 as one of 128.
inline Status launch_pairs(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  return launch_variant<Ring<128, 1, 32, true, true>, 1>(args, launch, stream);
}

// The smallest variant that holds `args.slot_rows` rows. 16 rows of head dimension 256 a warp are more than the
// registers hold.
template <int kHeadDim>
Status launch_decode(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  constexpr int kMost = kHeadDim <= 128 ? 2 : 1;
  if (args.slot_rows <= 8) return launch_variant<kHeadDim, 1, 1>(args, launch, stream);
  if constexpr (max_rows(kHeadDim) > 16) {
    if (args.slot_rows > 16) return launch_variant<kHeadDim, kMost, 4 / kMost>(args, launch, stream);
  }
  return launch_variant<kHeadDim, kMost, 2 / kMost>(args, launch, stream);
}

}  // namespace onepass::hopper_decode
