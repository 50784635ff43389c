// kPortableAttention: the host's side of portable/. Chooses among the kernels by the number of packed rows, lays
// out the scratch memory and fills in the kernels' parameters.
#include <algorithm>

#include "attention/cuda/kernels.h"
#include "attention/cuda/portable/launch.h"
#include "attention/cuda/strides.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

using portable::Kernel;
using portable::KernelParams;
using portable::KernelSet;

// The set for the dtype and the head dimensions; null when there is none.
const KernelSet* kernel_set(const AttentionParams& p) {
  struct Entry {
    int head_dim, head_dim_v;
    const KernelSet* bf16;
    const KernelSet* fp16;
  };
  using namespace portable;
  static constexpr Entry kSets[] = {
      {64, 64, &kBf16Dim64x64, &kFp16Dim64x64},       {80, 80, &kBf16Dim80x80, &kFp16Dim80x80},
      {96, 96, &kBf16Dim96x96, &kFp16Dim96x96},       {128, 128, &kBf16Dim128x128, &kFp16Dim128x128},
      {192, 128, &kBf16Dim192x128, &kFp16Dim192x128}, {192, 192, &kBf16Dim192x192, &kFp16Dim192x192},
      {256, 256, &kBf16Dim256x256, &kFp16Dim256x256},
  };
  for (const Entry& set : kSets) {
    if (set.head_dim == p.head_dim && set.head_dim_v == p.head_dim_v) {
      return p.kv_dtype == DType::kBF16 ? set.bf16 : set.fp16;
    }
  }
  return nullptr;
}

Status supports(const AttentionParams& p, const GpuInfo& gpu) {
  ONEPASS_RETURN_IF_ERROR(validate(p));
  if (gpu.compute_capability < 80) {
    return unimplemented("attention: portable kernel: expected compute capability 8.0 or later, found ",
                         gpu.compute_capability / 10, ".", gpu.compute_capability % 10);
  }
  if (p.kv_dtype != DType::kBF16 && p.kv_dtype != DType::kF16) {
    return unimplemented("attention: kv_dtype: portable kernel: expected bfloat16 or float16, found ",
                         to_string(p.kv_dtype));
  }
  if (p.q_dtype != p.kv_dtype) {
    return unimplemented("attention: q_dtype: portable kernel: expected kv_dtype = ", to_string(p.kv_dtype), ", found ",
                         to_string(p.q_dtype));
  }
  if (p.out_dtype != p.kv_dtype && p.out_dtype != DType::kF32) {
    return unimplemented("attention: out_dtype: portable kernel: expected float32 or kv_dtype = ",
                         to_string(p.kv_dtype), ", found ", to_string(p.out_dtype));
  }
  const KernelSet* const set = kernel_set(p);
  if (set == nullptr) {
    return unimplemented(
        "attention: head_dim: portable kernel: expected 64, 80, 96, 128, 192 or 256 with head_dim_v = head_dim, or 192 "
        "with head_dim_v = 128, found ",
        p.head_dim, " with ", p.head_dim_v);
  }
  ONEPASS_RETURN_IF_ERROR(check_strides(p, "portable kernel"));
  const int64_t shared_bytes = std::max(set->decode.shared_bytes, set->prefill.shared_bytes);
  if (gpu.shared_memory_bytes < shared_bytes) {
    return unimplemented("attention: portable kernel: expected ", shared_bytes,
                         " bytes of shared memory for a thread block, found ", gpu.shared_memory_bytes);
  }
  return ok_status();
}

// Decode tiles for a few packed rows; and wherever bits must not depend on the batch, so that one kernel does all.
// Otherwise the smallest tiles that hold a request's rows.
const Kernel& kernel_for(const AttentionParams& p, const KernelSet& set) {
  const int64_t rows = int64_t{p.max_seqlen_q} * (p.num_heads / p.num_heads_kv);
  if (p.split_size > 0 || rows <= set.decode.rows) return set.decode;
  return rows <= set.extend.rows ? set.extend : set.prefill;
}

// What lies in the scratch memory, by its size, and the kernels' parameters that point into it.
struct Layout {
  KernelParams params;
  int64_t bytes = 0;
  int blocks = 0;  // of threads, to launch
  const Kernel* kernel = nullptr;
};

// Beyond any position (2^30 keys of the smallest head take 256 GB), so that sums of positions stay within 32 bits.
constexpr int kUnlimited = 1 << 30;

Layout lay_out(const AttentionParams& p, const GpuInfo& gpu, void* scratch) {
  Layout layout;
  const KernelSet& set = *kernel_set(p);
  layout.kernel = &kernel_for(p, set);
  const bool decode = layout.kernel == &set.decode;
  KernelParams& to = layout.params;
  to = {.q = p.q,
        .k = p.k,
        .v = p.v,
        .out = p.out,
        .softmax_lse = p.softmax_lse,
        .out_float32 = p.out_dtype == DType::kF32,
        .q_row_stride = p.q_row_stride,
        .q_head_stride = p.q_head_stride,
        .k_page_stride = p.k_page_stride,
        .k_row_stride = p.k_row_stride,
        .k_head_stride = p.k_head_stride,
        .v_page_stride = p.v_page_stride,
        .v_row_stride = p.v_row_stride,
        .v_head_stride = p.v_head_stride,
        .out_row_stride = p.out_row_stride,
        .out_head_stride = p.out_head_stride,
        .batch = p.batch,
        .total_q = p.total_q,
        .num_heads_kv = p.num_heads_kv,
        .group = fast_divide(p.num_heads / p.num_heads_kv),
        .page_size = fast_divide(p.page_table != nullptr ? p.page_size : 0x7fffffff),
        .rows_together = (p.page_table == nullptr || p.page_size % 16 == 0) && p.split_size % 16 == 0,
        .cu_seqlens_q = p.cu_seqlens_q,
        .cache_seqlens = p.cache_seqlens,
        .cu_seqlens_k = p.cu_seqlens_k,
        .page_table = p.page_table,
        .page_table_stride = p.page_table_stride,
        .softmax_scale = p.softmax_scale,
        .softcap = p.softcap,
        // A weight of the largest score that isn't 1 is rounded, by at most half a unit in the last place of a 16-bit
        // output; in a float32 output that would show.
        .max_growth = p.out_dtype == DType::kF32 ? 0.0f : 8.0f,
        .causal = p.causal,
        .local = p.window_left >= 0 || p.window_right >= 0 || p.attention_chunk > 0,
        .window_left = std::min(p.window_left, kUnlimited),
        .window_right = std::min(p.window_right, kUnlimited),
        .attention_chunk = std::min(p.attention_chunk, kUnlimited),
        .sinks = p.sinks,
        .q_descale = p.q_descale,
        .k_descale = p.k_descale,
        .v_descale = p.v_descale,
        .num_splits = p.num_splits,
        .split_size = p.split_size};

  const int64_t group = p.num_heads / p.num_heads_kv;
  to.tile_rows = layout.kernel->rows;
  to.slots = portable::kBlocksPerSm * gpu.multiprocessors;
  // Parts: of decode 4 items for each thread block, of prefill, whose results are larger, 2.
  to.max_part_units =
      p.num_splits == 1 && p.split_size == 0 ? 0 : std::max(1, (decode ? 4 : 2) * to.slots / p.num_heads_kv);
  const int64_t tiles = p.total_q * group / to.tile_rows + p.batch;
  const int64_t units = tiles + to.max_part_units;
  const int64_t parts = int64_t{to.max_part_units} * p.num_heads_kv;
  layout.blocks = static_cast<int>(std::min<int64_t>(to.slots, units * p.num_heads_kv));

  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(static_cast<char*>(scratch) + layout.bytes);
    layout.bytes += (count * static_cast<int64_t>(sizeof(*pointer)) + 255) / 256 * 256;
  };
  take(to.header, 1);
  take(to.arrivals, parts);
  take(to.items, units * p.num_heads_kv);
  take(to.tile_begin, p.batch + 1);
  take(to.tile_units, tiles + 1);
  take(to.tile_parts, tiles);
  take(to.partial_lse, parts * to.tile_rows);
  take(to.partial_out, parts * to.tile_rows * p.head_dim_v);
  take(to.fold_state, p.split_size > 0 ? int64_t{to.slots} * set.fold_floats : 0);
  return layout;
}

int64_t scratch_bytes(const AttentionParams& p, const GpuInfo& gpu) { return lay_out(p, gpu, nullptr).bytes; }

Status plan(const AttentionParams& p, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (p.total_q == 0 || p.batch == 0) return ok_status();
  return cuda_status(portable::launch_plan(lay_out(p, gpu, scratch.data).params, stream), "portable attention: plan");
}

Status run(const AttentionParams& p, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (p.total_q == 0 || p.batch == 0) return ok_status();
  const Layout layout = lay_out(p, gpu, scratch.data);
  const Kernel& kernel = *layout.kernel;
  return cuda_status(kernel.launch(layout.params, layout.blocks, kernel.shared_bytes, stream),
                     "portable attention: run");
}

}  // namespace

const CudaAttentionKernel kPortableAttention = {
    .name = "portable", .supports = supports, .scratch_bytes = scratch_bytes, .plan = plan, .run = run};

}  // namespace onepass
