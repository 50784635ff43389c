// The C functions of onepass/attention.h over the C++ ones: structs are translated, statuses become numbers and lines.
#include <algorithm>
#include <cstring>
#include <string>

#include "attention/c_api/structs.h"
#include "attention/cuda/flash_attention_cuda.h"
#include "attention/cuda/merge.h"
#include "kernels/cuda/append_kv.h"
#include "onepass/attention.h"
#include "tensor/cuda/gpu_context.h"
#include "tensor/cuda_info.h"

struct onepass_device {
  int index;
  onepass::GpuInfo gpu;
};

namespace onepass::c_api {
namespace {

void write(std::string_view text, char* message, size_t message_size) {
  if (message == nullptr || message_size == 0) return;
  const size_t count = std::min(text.size(), message_size - 1);
  std::memcpy(message, text.data(), count);
  message[count] = '\0';
}

onepass_status code_of(const Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ONEPASS_OK;
    case absl::StatusCode::kUnimplemented:
      return ONEPASS_UNSUPPORTED;
    case absl::StatusCode::kNotFound:
      return ONEPASS_NO_DEVICE;
    case absl::StatusCode::kInternal:
      return ONEPASS_CUDA_ERROR;
    default:
      return ONEPASS_INVALID_ARGUMENT;
  }
}

onepass_status report(const Status& status, char* message, size_t message_size) {
  if (!status.ok()) write({status.message().data(), status.message().size()}, message, message_size);
  return code_of(status);
}

template <typename T>
Status expect_address(const T* pointer, std::string_view name) {
  return pointer != nullptr ? ok_status() : invalid_argument(name, ": expected an address, found null");
}

const CudaAttentionKernel* kernel_of(const onepass_attention_kernel* kernel) {
  return reinterpret_cast<const CudaAttentionKernel*>(kernel);
}
const onepass_attention_kernel* handle_of(const CudaAttentionKernel* kernel) {
  return reinterpret_cast<const onepass_attention_kernel*>(kernel);
}

// The params of a call that has chosen its kernel, looked at once more: a kernel must never see what it does not serve.
StatusOr<AttentionParams> params_for(const onepass_device* device, const onepass_attention_kernel* kernel,
                                     const onepass_attention_params* params) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  ONEPASS_RETURN_IF_ERROR(expect_address(kernel, "kernel"));
  ONEPASS_ASSIGN_OR_RETURN(AttentionParams p, attention_params(params));
  ONEPASS_RETURN_IF_ERROR(validate(p));
  ONEPASS_RETURN_IF_ERROR(kernel_of(kernel)->supports(p, device->gpu));
  return p;
}

Status check_alignment(const AttentionParams& p) {
  for (const void* address : {p.q, p.k, p.v, static_cast<const void*>(p.out)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
      return invalid_argument(
          "attention: q, k, v and out: expected multiples of 16 bytes, found an address that is not");
    }
  }
  return ok_status();
}

struct Steps {
  bool plan = false;
  bool run = false;
};

Status queue(const Steps& steps, const onepass_device* device, const onepass_attention_kernel* kernel,
             const onepass_attention_params* params, void* scratch, int64_t scratch_bytes, void* stream) {
  ONEPASS_ASSIGN_OR_RETURN(const AttentionParams p, params_for(device, kernel, params));
  ONEPASS_RETURN_IF_ERROR(check_alignment(p));
  const CudaAttentionKernel& k = *kernel_of(kernel);
  const int64_t needed = k.scratch_bytes(p, device->gpu);
  if (scratch_bytes < needed || (scratch == nullptr && needed > 0) || reinterpret_cast<uintptr_t>(scratch) % 256 != 0) {
    return invalid_argument("attention: scratch: expected ", needed, " bytes at a multiple of 256, found ",
                            scratch_bytes, scratch == nullptr ? " at null" : "");
  }
  const CurrentGpu current(device->index);
  ONEPASS_RETURN_IF_ERROR(current.status());
  const CudaScratch memory = {.data = scratch, .bytes = scratch_bytes};
  auto* const to = static_cast<CUstream_st*>(stream);
  if (steps.plan) ONEPASS_RETURN_IF_ERROR(k.plan(p, device->gpu, memory, to));
  return steps.run ? k.run(p, device->gpu, memory, to) : ok_status();
}

Status count_devices(int32_t* count) {
  ONEPASS_RETURN_IF_ERROR(expect_address(count, "count"));
  *count = 0;
  ONEPASS_ASSIGN_OR_RETURN(*count, count_gpus());
  return ok_status();
}

Status open(int32_t index, onepass_device** device) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  *device = nullptr;
  ONEPASS_ASSIGN_OR_RETURN(GpuInfo gpu, query_gpu(index));
  *device = new onepass_device{.index = index, .gpu = std::move(gpu)};
  return ok_status();
}

Status query(const onepass_device* device, onepass_device_info* info) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  ONEPASS_RETURN_IF_ERROR(check_struct(info, "onepass_device_info"));
  const GpuInfo& gpu = device->gpu;
  onepass_device_info all = {.struct_size = info->struct_size,
                             .index = device->index,
                             .compute_capability = gpu.compute_capability,
                             .multiprocessors = gpu.multiprocessors,
                             .reserved = 0,
                             .memory_bytes = gpu.memory_bytes,
                             .l2_cache_bytes = gpu.l2_cache_bytes,
                             .shared_memory_bytes = gpu.shared_memory_bytes,
                             .name = {}};
  write(gpu.name, all.name, sizeof(all.name));
  std::memcpy(info, &all, info->struct_size);
  return ok_status();
}

Status choose(const onepass_device* device, const onepass_attention_params* params, const char* name,
              const onepass_attention_kernel** kernel) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  ONEPASS_RETURN_IF_ERROR(expect_address(name, "name"));
  ONEPASS_RETURN_IF_ERROR(expect_address(kernel, "kernel"));
  *kernel = nullptr;
  ONEPASS_ASSIGN_OR_RETURN(const AttentionParams p, attention_params(params));
  ONEPASS_ASSIGN_OR_RETURN(const CudaAttentionKernel* chosen, choose_cuda_attention_kernel(p, device->gpu, name));
  *kernel = handle_of(chosen);
  return ok_status();
}

Status scratch_bytes(const onepass_device* device, const onepass_attention_kernel* kernel,
                     const onepass_attention_params* params, int64_t* bytes) {
  ONEPASS_RETURN_IF_ERROR(expect_address(bytes, "bytes"));
  ONEPASS_ASSIGN_OR_RETURN(const AttentionParams p, params_for(device, kernel, params));
  *bytes = kernel_of(kernel)->scratch_bytes(p, device->gpu);
  return ok_status();
}

Status merge(const onepass_device* device, const onepass_merge_params* params, void* stream) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  ONEPASS_ASSIGN_OR_RETURN(const MergeParams p, merge_params(params));
  const CurrentGpu current(device->index);
  ONEPASS_RETURN_IF_ERROR(current.status());
  return merge_attention_parts(p, static_cast<CUstream_st*>(stream));
}

Status append_kv(const onepass_device* device, const onepass_append_kv_params* params, void* stream) {
  ONEPASS_RETURN_IF_ERROR(expect_address(device, "device"));
  ONEPASS_ASSIGN_OR_RETURN(const AppendKvParams p, append_kv_params(params));
  const CurrentGpu current(device->index);
  ONEPASS_RETURN_IF_ERROR(current.status());
  return run_append_kv(p, static_cast<CUstream_st*>(stream));
}

Status find_capture(void* stream, uint64_t* id) {
  ONEPASS_RETURN_IF_ERROR(expect_address(id, "id"));
  ONEPASS_ASSIGN_OR_RETURN(*id, capture_id(static_cast<CUstream_st*>(stream)));
  return ok_status();
}

}  // namespace
}  // namespace onepass::c_api

using onepass::c_api::report;

extern "C" {

int32_t onepass_attention_version(void) { return ONEPASS_ATTENTION_VERSION; }

onepass_status onepass_device_count(int32_t* count, char* message, size_t message_size) {
  return report(onepass::c_api::count_devices(count), message, message_size);
}

onepass_status onepass_device_open(int32_t index, onepass_device** device, char* message, size_t message_size) {
  return report(onepass::c_api::open(index, device), message, message_size);
}

void onepass_device_close(onepass_device* device) { delete device; }

onepass_status onepass_device_query(const onepass_device* device, onepass_device_info* info, char* message,
                                    size_t message_size) {
  return report(onepass::c_api::query(device, info), message, message_size);
}

onepass_status onepass_attention_choose(const onepass_device* device, const onepass_attention_params* params,
                                        const char* name, const onepass_attention_kernel** kernel, char* message,
                                        size_t message_size) {
  return report(onepass::c_api::choose(device, params, name, kernel), message, message_size);
}

const onepass_attention_kernel* onepass_attention_kernel_at(int32_t number) {
  const auto kernels = onepass::cuda_attention_kernels();
  if (number < 0 || static_cast<size_t>(number) >= kernels.size()) return nullptr;
  return onepass::c_api::handle_of(kernels[number]);
}

// The names are literals, which end with a NUL.
const char* onepass_attention_kernel_name(const onepass_attention_kernel* kernel) {
  return kernel != nullptr ? onepass::c_api::kernel_of(kernel)->name.data() : nullptr;
}

onepass_status onepass_attention_scratch_bytes(const onepass_device* device, const onepass_attention_kernel* kernel,
                                               const onepass_attention_params* params, int64_t* bytes, char* message,
                                               size_t message_size) {
  return report(onepass::c_api::scratch_bytes(device, kernel, params, bytes), message, message_size);
}

onepass_status onepass_attention_plan(const onepass_device* device, const onepass_attention_kernel* kernel,
                                      const onepass_attention_params* params, void* scratch, int64_t scratch_bytes,
                                      void* stream, char* message, size_t message_size) {
  return report(onepass::c_api::queue({.plan = true}, device, kernel, params, scratch, scratch_bytes, stream), message,
                message_size);
}

onepass_status onepass_attention_run(const onepass_device* device, const onepass_attention_kernel* kernel,
                                     const onepass_attention_params* params, void* scratch, int64_t scratch_bytes,
                                     void* stream, char* message, size_t message_size) {
  return report(onepass::c_api::queue({.run = true}, device, kernel, params, scratch, scratch_bytes, stream), message,
                message_size);
}

onepass_status onepass_attention_plan_and_run(const onepass_device* device, const onepass_attention_kernel* kernel,
                                              const onepass_attention_params* params, void* scratch,
                                              int64_t scratch_bytes, void* stream, char* message, size_t message_size) {
  return report(
      onepass::c_api::queue({.plan = true, .run = true}, device, kernel, params, scratch, scratch_bytes, stream),
      message, message_size);
}

onepass_status onepass_attention_merge(const onepass_device* device, const onepass_merge_params* params, void* stream,
                                       char* message, size_t message_size) {
  return report(onepass::c_api::merge(device, params, stream), message, message_size);
}

onepass_status onepass_append_kv(const onepass_device* device, const onepass_append_kv_params* params, void* stream,
                                 char* message, size_t message_size) {
  return report(onepass::c_api::append_kv(device, params, stream), message, message_size);
}

onepass_status onepass_stream_capture_id(void* stream, uint64_t* id, char* message, size_t message_size) {
  return report(onepass::c_api::find_capture(stream, id), message, message_size);
}

}  // extern "C"
