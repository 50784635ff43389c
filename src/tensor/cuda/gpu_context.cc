#include "tensor/cuda/gpu_context.h"

#include <cuda.h>
#include <dlfcn.h>

#include <type_traits>

namespace onepass {
namespace {

// The driver's functions for contexts, which the runtime has none for.
struct Driver {
  Status status;
  decltype(&::cuDeviceGet) get_device = nullptr;
  decltype(&::cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&::cuDevicePrimaryCtxRelease) release = nullptr;
  decltype(&::cuCtxPushCurrent) push = nullptr;
  decltype(&::cuCtxPopCurrent) pop = nullptr;

  Driver() {
    int count = 0;
    status = cuda_status(cudaGetDeviceCount(&count), "cudaGetDeviceCount");  // initialises the driver, and no GPU
    if (!status.ok()) return;
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW);  // stays: the runtime has it open
    const auto find = [&](auto& function, const char* name) {
      if (library != nullptr) function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, name));
      if (function == nullptr && status.ok()) status = not_found("libcuda.so.1: expected ", name, ", found none");
    };
    // By the names that cuda.h's macros stand for.
    find(get_device, "cuDeviceGet");
    find(retain, "cuDevicePrimaryCtxRetain");
    find(release, "cuDevicePrimaryCtxRelease_v2");
    find(push, "cuCtxPushCurrent_v2");
    find(pop, "cuCtxPopCurrent_v2");
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

}  // namespace

CurrentGpu::CurrentGpu(int index) {
  status_ = driver().status;
  if (!status_.ok()) return;
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUresult result = driver().get_device(&device, index);
  if (result == CUDA_SUCCESS) result = driver().retain(&context, device);
  if (result == CUDA_SUCCESS) {
    result = driver().push(context);
    if (result == CUDA_SUCCESS) {
      device_ = device;
    } else {
      driver().release(device);
    }
  }
  if (result != CUDA_SUCCESS) {
    status_ = absl::InternalError(
        str_cat("GPU ", index, ": it cannot be made current: the driver's error ", static_cast<int>(result)));
  }
}

CurrentGpu::~CurrentGpu() {
  if (device_ < 0) return;
  CUcontext context = nullptr;
  driver().pop(&context);
  driver().release(device_);
}

}  // namespace onepass
