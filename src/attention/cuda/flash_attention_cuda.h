// One-pass attention (FlashAttention) on NVIDIA GPUs: the kernels, listed in a table, and the choice among them.
//
// A kernel works in two parts. plan() turns the lengths of a batch into a split plan in device memory; run() attends by
// it. One plan serves every layer of a step. Both only queue work, and nothing about the lengths is a launch parameter:
// what a graph has captured is right for any cu_seqlens_q and cache_seqlens that are later written to the same
// addresses, within the bounds of batch, total_q and max_seqlen_q. plan() may read the page table, up to the lengths,
// for hints: run() is right with any other.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "attention/attention_params.h"
#include "tensor/cuda_info.h"

struct CUstream_st;  // cudaStream_t points to it

namespace onepass {

// Device memory that the caller owns, 256-byte aligned. All zero before its first plan(); afterwards a kernel leaves in
// it what the next call of the same kernel needs. Serves one stream at a time.
struct CudaScratch {
  void* data = nullptr;
  int64_t bytes = 0;
};

// All pointers in AttentionParams are device memory, 16-byte aligned, with row and head strides that are multiples of
// 16 bytes. Called from any thread, with the GPU that `gpu` describes current.
struct CudaAttentionKernel {
  std::string_view name;  // of --kernel: "portable", "hopper-decode", ...

  // Why the kernel cannot serve `params` on `gpu`; names the field. Looks at no array.
  Status (*supports)(const AttentionParams& params, const GpuInfo& gpu);

  // Whether it is a good choice for what it supports; null: always.
  bool (*suits)(const AttentionParams& params) = nullptr;

  // Scratch that plan() and run() need. Depends on the sizes in `params` alone.
  int64_t (*scratch_bytes)(const AttentionParams& params, const GpuInfo& gpu);

  // REQUIRES: supports(), scratch.bytes >= scratch_bytes(). An error is a CUDA error: the launch did not happen.
  Status (*plan)(const AttentionParams& params, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream);
  Status (*run)(const AttentionParams& params, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream);
};

// The most special first: the first that supports and suits a problem is the one to use.
std::span<const CudaAttentionKernel* const> cuda_attention_kernels();

// The kernel called `name`, or for "auto" the first that supports and suits `params`. The error says why there is none.
StatusOr<const CudaAttentionKernel*> choose_cuda_attention_kernel(const AttentionParams& params, const GpuInfo& gpu,
                                                                  std::string_view name = "auto");

}  // namespace onepass
