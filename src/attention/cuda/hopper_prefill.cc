// The host's side of the Hopper prefill kernel: what it serves, its scratch, tensor maps and launches.
#include "attention/cuda/hopper_prefill.h"

#include <bit>
#include <numbers>
#include <numeric>

#include "attention/cuda/kernels.h"
#include "attention/cuda/merge.h"
#include "attention/cuda/strides.h"
#include "tensor/cuda/cuda_status.h"
#include "tensor/cuda/tensor_map.h"

namespace onepass {
namespace {

using hopper::PrefillKernel;

// What the L2 cache fetches at once. With 256 bytes the halves of the cache bring each other 1.4 times as much.
constexpr CUtensorMapL2promotion kFetched = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;

// Whether the kernel's copies are good for the problem's pages: boxes are not for pages that are small, or that blocks
// of keys cannot be cut into.
bool takes_pages(const PrefillKernel& kernel, const AttentionParams& p) {
  if (p.page_table == nullptr) return !kernel.gathers;
  return kernel.gathers || (p.page_size >= kernel.smallest_page && std::has_single_bit(unsigned(p.page_size)));
}

// 16-byte pieces of K or V, up to the end of the last page; their numbers are of 32 bits.
int64_t pieces(const AttentionParams& p, int64_t page_stride) {
  return p.total_kv_rows / p.page_size * page_stride / 8;
}

// The first instantiation that fits, or null.
const PrefillKernel* find_kernel(const AttentionParams& p) {
  for (const PrefillKernel& kernel :
       p.q_dtype == DType::kBF16 ? hopper::prefill_kernels_bf16() : hopper::prefill_kernels_fp16()) {
    if (kernel.head_dim != p.head_dim || kernel.head_dim_v != p.head_dim_v) continue;
    if (kernel.longest > 0 && p.max_seqlen_q > kernel.longest) continue;
    if (!takes_pages(kernel, p)) continue;
    if (kernel.paired && !p.causal) continue;
    if (p.total_q < int64_t{kernel.shortest} * p.batch) continue;
    return &kernel;
  }
  return nullptr;
}

// Thread blocks, or pairs of them, that work on a tile each.
int workers(const PrefillKernel& kernel, const GpuInfo& gpu) {
  return kernel.paired ? gpu.multiprocessors / 2 : gpu.multiprocessors;
}

// Beyond any position, and so small that a position, both windows and a tile add up within 32 bits.
constexpr int kUnlimited = (1 << 30) - 1024;

hopper::KeyMask key_mask(const AttentionParams& p) {
  return {.window_left = std::min(p.window_left, kUnlimited),
          .window_right = p.causal ? 0 : std::min(p.window_right, kUnlimited),
          .chunk = p.attention_chunk};
}

Status supports(const AttentionParams& p, const GpuInfo& gpu) {
  if (gpu.compute_capability != 90) {
    return unimplemented("hopper-prefill: expected a GPU of compute capability 9.0, found ",
                         gpu.compute_capability / 10, ".", gpu.compute_capability % 10);
  }
  if (p.q_dtype != DType::kBF16 && p.q_dtype != DType::kF16) {
    return unimplemented("hopper-prefill: q_dtype: expected float16 or bfloat16, found ", to_string(p.q_dtype));
  }
  if (p.kv_dtype != p.q_dtype || p.out_dtype != p.q_dtype) {
    return unimplemented("hopper-prefill: kv_dtype and out_dtype: expected q's, ", to_string(p.q_dtype), ", found ",
                         to_string(p.kv_dtype), " and ", to_string(p.out_dtype));
  }
  if (!(p.softmax_scale > 0.0f)) {
    return unimplemented("hopper-prefill: softmax_scale: expected more than 0, found ", p.softmax_scale);
  }
  if (p.q_descale != nullptr || p.k_descale != nullptr || p.v_descale != nullptr) {
    return unimplemented("hopper-prefill: q_descale, k_descale and v_descale: expected none");
  }
  // Of a tile's rows some may then see several blocks of keys more than others, and the consumer that passes over those
  // waits for one that waits for it.
  if (p.attention_chunk > 0 && key_mask(p).window_right != 0) {
    return unimplemented("hopper-prefill: attention_chunk: expected it with causal, found ", p.attention_chunk,
                         " without");
  }
  ONEPASS_RETURN_IF_ERROR(check_strides(p, "hopper-prefill"));
  if (p.total_kv_rows <= 0) return unimplemented("hopper-prefill: total_kv_rows: expected to know it, found 0");
  const PrefillKernel* kernel = find_kernel(p);
  if (kernel == nullptr) {
    return unimplemented("hopper-prefill: head_dim and head_dim_v: expected 64, 128, 192 and 128, or 256, found ",
                         p.head_dim, " and ", p.head_dim_v);
  }
  if (kernel->gathers && std::max(pieces(p, p.k_page_stride), pieces(p, p.v_page_stride)) >= int64_t{1} << 32) {
    return unimplemented("hopper-prefill: total_kv_rows: expected K and V of less than 64 GiB each where page_size is ",
                         p.page_size, ", found ", p.total_kv_rows, " rows");
  }
  if (kernel->gathers && int64_t{p.batch} * p.page_table_stride >= int64_t{1} << 32) {
    return unimplemented("hopper-prefill: page_table: expected fewer than 2^32 entries where page_size is ",
                         p.page_size, ", found ", p.batch, " rows of ", p.page_table_stride);
  }
  return ok_status();
}

struct Layout {
  int64_t entries = 0;  // offsets in scratch
  int64_t chunks = 0;   // of the requests, then their first tiles
  int64_t part_lse = 0;
  int64_t part_out = 0;
  int64_t bytes = 0;
};

// REQUIRES: supports().
int64_t max_entries(const AttentionParams& p) {
  const int64_t rows = find_kernel(p)->rows;
  return std::min(p.total_q / rows + p.batch, p.batch * ((p.max_seqlen_q + rows - 1) / rows));
}

// Parts that keys are cut into where tiles are too few for the multiprocessors.
int max_parts(const AttentionParams& p, const GpuInfo& gpu) {
  constexpr int kMost = 32;
  if (p.split_size > 0) return 1;
  const int64_t tiles = max_entries(p) * p.num_heads;
  const int64_t keys = p.page_table != nullptr ? p.page_table_stride * p.page_size : p.total_kv_rows;
  const int64_t parts = std::min<int64_t>(workers(*find_kernel(p), gpu) / std::max<int64_t>(1, tiles),
                                          keys / (find_kernel(p)->keys * hopper::kPrefillPartBlocks));
  return static_cast<int>(std::clamp<int64_t>(parts, 1, p.num_splits > 0 ? std::min(p.num_splits, kMost) : kMost));
}

Layout layout(const AttentionParams& p, const GpuInfo& gpu) {
  const auto aligned = [](int64_t offset) { return (offset + 255) / 256 * 256; };
  const int parts = max_parts(p, gpu);
  const int64_t part_rows = parts > 1 ? int64_t{parts} * p.num_heads * p.total_q : 0;
  Layout layout;
  layout.entries = sizeof(hopper::PrefillPlan);
  layout.chunks = layout.entries + max_entries(p) * static_cast<int64_t>(sizeof(hopper::PrefillEntry));
  layout.part_lse = aligned(layout.chunks + 2 * p.batch * static_cast<int64_t>(sizeof(int32_t)));
  layout.part_out = aligned(layout.part_lse + part_rows * static_cast<int64_t>(sizeof(float)));
  layout.bytes = layout.part_out + part_rows * p.head_dim_v * static_cast<int64_t>(sizeof(float));
  return layout;
}

int64_t scratch_bytes(const AttentionParams& p, const GpuInfo& gpu) {
  return find_kernel(p) == nullptr ? 0 : layout(p, gpu).bytes;
}

template <typename U>
U* at(const CudaScratch& scratch, int64_t offset) {
  return reinterpret_cast<U*>(static_cast<char*>(scratch.data) + offset);
}

Status plan(const AttentionParams& p, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (p.total_q == 0 || p.batch == 0) return ok_status();
  const Layout at_bytes = layout(p, gpu);
  hopper::PrefillPlanArgs args;
  args.cu_seqlens_q = p.cu_seqlens_q;
  args.cache_seqlens = p.cache_seqlens;
  args.cu_seqlens_k = p.page_table == nullptr ? p.cu_seqlens_k : nullptr;
  args.batch = p.batch;
  args.tile_rows = find_kernel(p)->rows;
  args.num_heads = p.num_heads;
  args.heads_per_kv = p.num_heads / p.num_heads_kv;
  // Two thirds of the L2 cache: the rest is for queries, outputs and what the other groups' stragglers read.
  args.workers = workers(*find_kernel(p), gpu);
  args.cached_keys = std::max<int64_t>(1, gpu.l2_cache_bytes * 2 / 3 / ((p.head_dim + p.head_dim_v) * 2));
  args.mask = key_mask(p);
  args.plan = at<hopper::PrefillPlan>(scratch, 0);
  args.entries = at<hopper::PrefillEntry>(scratch, at_bytes.entries);
  args.most_entries = static_cast<int32_t>(max_entries(p));
  args.chunk_of_request = at<int32_t>(scratch, at_bytes.chunks);
  args.tile_of_request = args.chunk_of_request + p.batch;
  hopper::launch_prefill_plan(args, stream);
  return launch_status("hopper-prefill: plan");
}

// K or V: [page, row, head, head_dim], contiguous ones as one page.
StatusOr<CUtensorMap> key_value_map(const AttentionParams& p, const void* data, int head_dim, int64_t page_stride,
                                    int64_t row_stride, int64_t head_stride, int box_rows) {
  const bool paged = p.page_table != nullptr;
  const int64_t rows = paged ? p.page_size : p.total_kv_rows;
  const int64_t sizes[] = {head_dim, p.num_heads_kv, rows, p.total_kv_rows / rows};
  const int64_t strides[] = {head_stride, row_stride, paged ? page_stride : row_stride};
  const int box[] = {64, 1, box_rows, 1};
  return make_tensor_map(data, p.kv_dtype, sizes, strides, box, kFetched);
}

hopper::PrefillRows rows(const void* data, int64_t page_stride, int64_t row_stride, int64_t head_stride) {
  return {.data = data,
          .page_stride = static_cast<uint32_t>(page_stride / 8),
          .row_stride = static_cast<uint32_t>(row_stride / 8),
          .head_stride = static_cast<uint32_t>(head_stride / 8)};
}

Status merge_parts(const AttentionParams& p, const hopper::PrefillArgs& from, CUstream_st* stream) {
  MergeParams merge;
  merge.num_stacks = 1;
  merge.stacks[0] = {.out = from.part_out,
                     .dtype = DType::kF32,
                     .part_stride = int64_t{p.num_heads} * p.total_q * p.head_dim_v,
                     .row_stride = p.head_dim_v,
                     .head_stride = int64_t{p.total_q} * p.head_dim_v,
                     .lse = from.softmax_lse,
                     .lse_part_stride = int64_t{p.num_heads} * p.total_q,
                     .lse_head_stride = p.total_q,
                     .count = from.parts};
  merge.out = p.out;
  merge.out_dtype = p.out_dtype;
  merge.out_row_stride = p.out_row_stride;
  merge.out_head_stride = p.out_head_stride;
  merge.softmax_lse = p.softmax_lse;
  merge.lse_head_stride = p.total_q;
  merge.sinks = p.sinks;
  merge.rows = p.total_q;
  merge.existing_rows = p.cu_seqlens_q + p.batch;
  merge.num_heads = p.num_heads;
  merge.head_dim_v = p.head_dim_v;
  return merge_attention_parts(merge, stream);
}

Status run(const AttentionParams& p, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (p.total_q == 0 || p.batch == 0) return ok_status();
  const PrefillKernel& kernel = *find_kernel(p);
  const int most_rows = kernel.paired ? kernel.keys / 2 : kernel.keys;
  const int box_rows = p.page_table != nullptr ? std::gcd(p.page_size, most_rows) : most_rows;
  hopper::PrefillMaps maps;
  {
    const int64_t sizes[] = {p.head_dim, p.num_heads, p.total_q};
    const int64_t strides[] = {p.q_head_stride, p.q_row_stride};
    const int box[] = {64, 1, 64};  // each consumer's
    ONEPASS_ASSIGN_OR_RETURN(maps.q, make_tensor_map(p.q, p.q_dtype, sizes, strides, box, kFetched));
  }
  {
    const int64_t sizes[] = {p.head_dim_v, p.num_heads, p.total_q};
    const int64_t strides[] = {p.out_head_stride, p.out_row_stride};
    const int box[] = {64, 1, 16};
    ONEPASS_ASSIGN_OR_RETURN(maps.out, make_tensor_map(p.out, p.out_dtype, sizes, strides, box, kFetched));
  }
  if (!kernel.gathers) {
    ONEPASS_ASSIGN_OR_RETURN(
        maps.k, key_value_map(p, p.k, p.head_dim, p.k_page_stride, p.k_row_stride, p.k_head_stride, box_rows));
    ONEPASS_ASSIGN_OR_RETURN(
        maps.v, key_value_map(p, p.v, p.head_dim_v, p.v_page_stride, p.v_row_stride, p.v_head_stride, box_rows));
  }

  const Layout at_bytes = layout(p, gpu);
  hopper::PrefillArgs args;
  args.plan = at<hopper::PrefillPlan>(scratch, 0);
  args.entries = at<hopper::PrefillEntry>(scratch, at_bytes.entries);
  args.parts = max_parts(p, gpu);
  if (args.parts > 1) args.part_out = at<float>(scratch, at_bytes.part_out);
  args.page_table = p.page_table;
  args.page_table_stride = p.page_table_stride;
  args.page_shift = p.page_table != nullptr ? std::countr_zero(unsigned(p.page_size)) : 0;
  args.page_mask = (1 << args.page_shift) - 1;
  args.window_mask = p.page_table == nullptr
                         ? INT32_MAX
                         : static_cast<int32_t>(std::min<int64_t>((int64_t{32} << args.page_shift) - 1, INT32_MAX));
  args.box_rows = box_rows;
  args.box_shift = p.page_table != nullptr ? std::countr_zero(unsigned(box_rows)) : 0;
  args.boxes = kernel.keys / box_rows;
  args.page_size = fast_divide(std::max(1, p.page_size));
  args.k_rows = rows(p.k, p.k_page_stride, p.k_row_stride, p.k_head_stride);
  args.v_rows = rows(p.v, p.v_page_stride, p.v_row_stride, p.v_head_stride);
  args.out = p.out;
  args.out_row_stride = p.out_row_stride;
  args.out_head_stride = p.out_head_stride;
  args.softmax_lse = args.parts > 1 ? at<float>(scratch, at_bytes.part_lse) : p.softmax_lse;
  args.sinks = args.parts > 1 ? nullptr : p.sinks;
  args.total_q = p.total_q;
  args.num_heads = p.num_heads;
  args.heads_per_kv = p.num_heads / p.num_heads_kv;
  args.softmax_scale = p.softmax_scale;
  args.softcap = p.softcap;
  if (p.softcap > 0.0f) args.cap_scale = 2.0f * std::numbers::log2e_v<float> * p.softmax_scale / p.softcap;
  args.mask = key_mask(p);
  const int64_t most_tiles = max_entries(p) * p.num_heads * args.parts;
  const int blocks = static_cast<int>(std::min<int64_t>(workers(kernel, gpu), most_tiles)) * (kernel.paired ? 2 : 1);
  const PrefillKernel::Launch launch = p.softcap > 0.0f ? kernel.launch_softcap : kernel.launch;
  ONEPASS_RETURN_IF_ERROR(cuda_status(launch(args, maps, blocks, stream), "hopper-prefill: run"));
  return args.parts > 1 ? merge_parts(p, args, stream) : ok_status();
}

// Tiles of 128 query tokens of one head are mostly empty where requests have few: K and V are read once for each head,
// and not split. 32 x 8,192 keys, 32/8 heads, 16 tokens: 1,347 GB/s, and 2,490 by the portable kernel, which packs
// heads.
//
// With split_size the choice must not depend on max_seqlen_q either, nor so on what else is in the batch.
bool suits(const AttentionParams& params) { return params.max_seqlen_q > 16 && params.split_size == 0; }

}  // namespace

const CudaAttentionKernel kHopperPrefill = {
    .name = "hopper-prefill",
    .supports = supports,
    .suits = suits,
    .scratch_bytes = scratch_bytes,
    .plan = plan,
    .run = run,
};

}  // namespace onepass
