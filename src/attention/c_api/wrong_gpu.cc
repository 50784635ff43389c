// A double of CUDA and of libonepass_attention.so for the examples: memory is the host's, nothing is computed, and
// ONEPASS_TEST_FAILURE says what goes wrong: "copy" or "clear" fails, or "nan" is the first of all results (the rest
// are zeros, that NaN is not forgotten on the way).
#include <cuda_runtime_api.h>
#include <onepass/attention.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace {

bool fails(std::string_view what) {
  const char* const failure = std::getenv("ONEPASS_TEST_FAILURE");
  return failure != nullptr && failure == what;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  // Until the program ends: the examples leave it to that, which is a leak on the host alone.
  static std::vector<std::vector<std::byte>> all;
  *memory = all.emplace_back(bytes).data();
  return cudaSuccess;
}

cudaError_t cudaFree(void*) { return cudaSuccess; }

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (fails("clear")) return cudaErrorInvalidValue;
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (fails("copy")) return cudaErrorIllegalAddress;
  std::memcpy(to, from, bytes);
  constexpr uint16_t kNan = 0x7fc0;  // of bfloat16
  if (kind == cudaMemcpyDeviceToHost) std::memcpy(to, &kNan, sizeof kNan);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "the clear failed" : "the copy failed";
}

onepass_status onepass_device_open(int32_t, onepass_device** device, char*, size_t) {
  *device = nullptr;
  return ONEPASS_OK;
}

void onepass_device_close(onepass_device*) {}

onepass_status onepass_attention_choose(const onepass_device*, const onepass_attention_params*, const char*,
                                        const onepass_attention_kernel** kernel, char*, size_t) {
  *kernel = nullptr;
  return ONEPASS_OK;
}

const char* onepass_attention_kernel_name(const onepass_attention_kernel*) { return "none"; }

onepass_status onepass_attention_scratch_bytes(const onepass_device*, const onepass_attention_kernel*,
                                               const onepass_attention_params*, int64_t* bytes, char*, size_t) {
  *bytes = 16;
  return ONEPASS_OK;
}

onepass_status onepass_attention_plan(const onepass_device*, const onepass_attention_kernel*,
                                      const onepass_attention_params*, void*, int64_t, void*, char*, size_t) {
  return ONEPASS_OK;
}

onepass_status onepass_attention_run(const onepass_device*, const onepass_attention_kernel*,
                                     const onepass_attention_params*, void*, int64_t, void*, char*, size_t) {
  return ONEPASS_OK;
}

onepass_status onepass_attention_merge(const onepass_device*, const onepass_merge_params*, void*, char*, size_t) {
  return ONEPASS_OK;
}
