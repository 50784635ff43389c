#include "attention/cuda/flash_attention_cuda.h"

namespace onepass {

StatusOr<const CudaAttentionKernel*> choose_cuda_attention_kernel(const AttentionParams& params, const GpuInfo& gpu,
                                                                  std::string_view name) {
  ONEPASS_RETURN_IF_ERROR(validate(params));
  if (params.total_q > 0 && params.max_seqlen_q == 0) {
    return invalid_argument("attention: max_seqlen_q: expected the longest request's query tokens, found 0");
  }
  Status last = unimplemented("attention: no CUDA kernel");
  for (const CudaAttentionKernel* kernel : cuda_attention_kernels()) {
    if (name != "auto" && name != kernel->name) continue;
    last = kernel->supports(params, gpu);
    if (name != "auto" && !last.ok()) return last;
    if (last.ok() && (name != "auto" || kernel->suits == nullptr || kernel->suits(params))) return kernel;
  }
  if (name == "auto") return last;
  std::string names;
  for (const CudaAttentionKernel* kernel : cuda_attention_kernels())
    names += str_cat(names.empty() ? "" : ", ", kernel->name);
  return invalid_argument("attention: kernel: expected auto or one of ", names, ", found \"", name, "\"");
}

}  // namespace onepass
