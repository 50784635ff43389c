#include "kv_cache/kv_pool.h"

#include <cstddef>
#include <cstring>

#include "base/memory_info.h"
#include "tensor/cuda/cuda_copy.h"

namespace onepass {

int64_t KvPoolConfig::bytes_per_token() const {
  return static_cast<int64_t>(num_layers) * num_kv_heads * (head_dim + head_dim_v) *
         static_cast<int64_t>(size_of(dtype));
}

StatusOr<KvPool> KvPool::create(const KvPoolConfig& config, const Device& device) {
  const auto positive = [](const char* name, int value) {
    return value > 0 ? ok_status() : invalid_argument("KV cache: ", name, ": expected at least 1, found ", value);
  };
  ONEPASS_RETURN_IF_ERROR(positive("num_layers", config.num_layers));
  ONEPASS_RETURN_IF_ERROR(positive("num_pages", config.num_pages));
  ONEPASS_RETURN_IF_ERROR(positive("num_kv_heads", config.num_kv_heads));
  ONEPASS_RETURN_IF_ERROR(positive("head_dim", config.head_dim));
  ONEPASS_RETURN_IF_ERROR(positive("head_dim_v", config.head_dim_v));
  if (config.page_size < 1 || config.page_size > 256) {
    return invalid_argument("KV cache: page size: expected 1 to 256, found ", config.page_size);
  }
  if (config.dtype != DType::kF32 && config.dtype != DType::kF16 && config.dtype != DType::kBF16) {
    return invalid_argument("KV cache: dtype: expected float32, float16 or bfloat16, found ", to_string(config.dtype));
  }
  // Memory is mapped without asking whether there is as much, and becomes resident as pages are written: a pool that
  // can never be filled would end in the kernel's killing, in the middle of the work.
  const double bytes = static_cast<double>(config.bytes_per_page()) * config.num_pages;
  int64_t available = machine_memory();
  if (device.kind == DeviceKind::kCuda) {
    ONEPASS_ASSIGN_OR_RETURN(const CudaMemory memory, cuda_memory());
    available = static_cast<int64_t>(memory.free);
  }
  if (bytes > static_cast<double>(available)) {
    return resource_exhausted("KV cache: ", static_cast<int64_t>(config.num_pages) * config.page_size, " tokens of ",
                              config.bytes_per_token(), " bytes are more than the ",
                              device.kind == DeviceKind::kCuda ? "GPU's free " : "machine's ", available,
                              " bytes hold: a shorter context length or fewer sequences would fit");
  }
  KvPool pool(config);
  const int64_t rows = static_cast<int64_t>(config.num_pages) * config.page_size * config.num_kv_heads;
  const int64_t element = static_cast<int64_t>(size_of(config.dtype));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer k, DeviceBuffer::allocate(rows * config.head_dim * element, device));
    ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer v, DeviceBuffer::allocate(rows * config.head_dim_v * element, device));
    pool.k_.push_back(std::move(k));
    pool.v_.push_back(std::move(v));
  }
  return pool;
}

Status KvPool::copy_page(int from, int to, int num_tokens, const Stream& stream) {
  const auto copy = [&](DeviceBuffer& buffer, int64_t row_stride) {
    const int64_t row = row_stride * static_cast<int64_t>(size_of(config_.dtype)), page = row * config_.page_size;
    auto* const data = buffer.as<std::byte>();
    const size_t bytes = static_cast<size_t>(num_tokens) * row;
    if (stream.device.kind == DeviceKind::kCuda) {
      return copy_async(data + to * page, data + from * page, bytes, stream.cuda);
    }
    std::memcpy(data + to * page, data + from * page, bytes);
    return ok_status();
  };
  for (DeviceBuffer& k : k_) ONEPASS_RETURN_IF_ERROR(copy(k, k_row_stride()));
  for (DeviceBuffer& v : v_) ONEPASS_RETURN_IF_ERROR(copy(v, v_row_stride()));
  return ok_status();
}

}  // namespace onepass
