#include "tensor/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

StatusOr<Encode> find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  ONEPASS_RETURN_IF_ERROR(cuda_status(error, "cuTensorMapEncodeTiled"));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    return unimplemented("cuTensorMapEncodeTiled: the driver does not have it");
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

StatusOr<CUtensorMap> make_tensor_map(const void* data, DType dtype, std::span<const int64_t> sizes,
                                      std::span<const int64_t> strides, std::span<const int> box,
                                      CUtensorMapL2promotion promotion) {
  static const StatusOr<Encode> encode = find_encode();
  ONEPASS_RETURN_IF_ERROR(encode.status());
  constexpr int kMaxRank = 5;
  cuuint64_t dims[kMaxRank];
  cuuint64_t stride_bytes[kMaxRank];
  cuuint32_t box_dims[kMaxRank];
  const cuuint32_t steps[kMaxRank] = {1, 1, 1, 1, 1};
  const int rank = static_cast<int>(sizes.size());
  for (int i = 0; i < rank; ++i) {
    dims[i] = sizes[i];
    box_dims[i] = box[i];
    if (i > 0) stride_bytes[i - 1] = 2 * strides[i - 1];
  }
  CUtensorMap map;
  const CUresult result =
      (*encode)(&map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, rank,
                const_cast<void*>(data), dims, stride_bytes, box_dims, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return invalid_argument("tensor map of rank ", rank, ": the driver refuses it with error ",
                            static_cast<int>(result));
  }
  return map;
}

}  // namespace onepass
