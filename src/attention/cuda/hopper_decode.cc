// The decode kernel's host side: what it takes, and how it is launched.
#include <algorithm>

#include "attention/cuda/hopper_decode_args.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/strides.h"
#include "tensor/cuda/tensor_map.h"

namespace onepass {
namespace {

using hopper_decode::Launch;
using hopper_decode::Layout;
using hopper_decode::RunArgs;

constexpr int64_t kMaxScratchBytes = int64_t{1} << 31;
constexpr int kLeastHeadsForPairs = 128;

// Rows of a box of K or V, which lie in one page; 0: no boxes. Boxes of 4 KB, two of which are a chunk's K at head
// dimension 128, read 2,981 GB/s at 32 x 1,024, boxes of 2 KB 2,915 and threads 2,843.
int box_keys(const AttentionParams& params) {
  const bool paged = params.page_table != nullptr;
  int keys = params.head_dim == 256 ? 16 : 32;
  if (params.head_dim == 128 && paged && params.page_size % 32 != 0) keys = 16;
  return params.total_kv_rows == 0 || (paged && params.page_size % keys != 0) ? 0 : keys;
}

// Whether two KV heads of dimension 64 are read as one of 128: where they lie side by side, their rows fit into one
// tile of 8, and there are many (32 x 4,096: 89.9 us instead of 96.3; 16 x 2,048: 24.6 instead of 25.9; but 8 x
// 1,024: 10.3 instead of 9.9). Not with split_size, where the batch and its longest query must not choose.
bool reads_pairs(const AttentionParams& params) {
  return params.head_dim == 64 && params.num_heads_kv % 2 == 0 && params.k_head_stride == 64 &&
         params.v_head_stride == 64 && params.split_size == 0 && box_keys(params) == 32 &&
         int64_t{2} * params.num_heads / params.num_heads_kv * params.max_seqlen_q <= 8 &&
         int64_t{params.batch} * params.num_heads_kv >= kLeastHeadsForPairs;
}

// What the plan and the kernel call heads: pairs of them if they are read so.
AttentionParams as_read(AttentionParams params) {
  if (reads_pairs(params)) {
    params.num_heads_kv /= 2;
    params.k_head_stride = params.v_head_stride = 128;
  }
  return params;
}

int packed_rows(const AttentionParams& params) { return params.num_heads / params.num_heads_kv * params.max_seqlen_q; }

// Rows of 8 in a block, and blocks that share a worker's keys when its rows are more than that.
Layout layout(const AttentionParams& params, const GpuInfo& gpu) {
  const AttentionParams read = as_read(params);
  return hopper_decode::make_layout(read, gpu.multiprocessors, std::max(1, packed_rows(read)));
}

Status supports(const AttentionParams& params, const GpuInfo& gpu) {
  if (gpu.compute_capability != 90) {
    return unimplemented("hopper-decode: GPU: expected compute capability 9.0, found ", gpu.compute_capability / 10,
                         ".", gpu.compute_capability % 10);
  }
  if (params.q_dtype != DType::kBF16 && params.q_dtype != DType::kF16) {
    return unimplemented("hopper-decode: q_dtype: expected bfloat16 or float16, found ", to_string(params.q_dtype));
  }
  if (params.kv_dtype != params.q_dtype) {
    return unimplemented("hopper-decode: kv_dtype: expected q_dtype, ", to_string(params.q_dtype), ", found ",
                         to_string(params.kv_dtype));
  }
  if (params.out_dtype != params.q_dtype && params.out_dtype != DType::kF32) {
    return unimplemented("hopper-decode: out_dtype: expected q_dtype or float32, found ", to_string(params.out_dtype));
  }
  if (params.head_dim != 64 && params.head_dim != 128 && params.head_dim != 256) {
    return unimplemented("hopper-decode: head_dim: expected 64, 128 or 256, found ", params.head_dim);
  }
  if (params.head_dim_v != params.head_dim) {
    return unimplemented("hopper-decode: head_dim_v: expected head_dim, ", params.head_dim, ", found ",
                         params.head_dim_v);
  }
  const int max_rows = hopper_decode::max_rows(params.head_dim);
  if (params.max_seqlen_q > max_rows || packed_rows(params) > max_rows) {
    return unimplemented("hopper-decode: max_seqlen_q: expected at most ", max_rows, " rows at ",
                         params.num_heads / params.num_heads_kv, " query heads a KV head, found ", params.max_seqlen_q);
  }
  if (params.q_descale != nullptr || params.k_descale != nullptr || params.v_descale != nullptr) {
    return unimplemented("hopper-decode: q_descale, k_descale and v_descale: expected null");
  }
  // More rows are shared out among the warps in another way, in which a row's sums would depend on the longest query.
  if (const int most = params.head_dim <= 128 ? 16 : 8; params.split_size > 0 && packed_rows(params) > most) {
    return unimplemented("hopper-decode: split_size: expected at most ", most,
                         " rows with it (max_seqlen_q times query heads "
                         "of a KV head), found ",
                         packed_rows(params));
  }
  if (params.batch_invariant) return unimplemented("hopper-decode: batch_invariant: expected false");
  ONEPASS_RETURN_IF_ERROR(check_strides(params, "hopper-decode"));
  if (params.split_size > 0 && params.page_table == nullptr && params.total_kv_rows == 0) {
    return unimplemented("hopper-decode: split_size: expected total_kv_rows with it, found 0");
  }
  if (const int64_t bytes = layout(params, gpu).bytes; bytes > kMaxScratchBytes) {
    return unimplemented("hopper-decode: num_splits and split_size: expected parts in at most ", kMaxScratchBytes,
                         " bytes, found ", bytes);
  }
  return ok_status();
}

int64_t scratch_bytes(const AttentionParams& params, const GpuInfo& gpu) { return layout(params, gpu).bytes; }

Status plan(const AttentionParams& params, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (params.batch == 0 || params.total_q == 0) return ok_status();
  return hopper_decode::launch_plan(as_read(params), layout(params, gpu), scratch.data, stream);
}

// Tensor maps for boxes; none, so that the threads copy, where there are no boxes and where the driver refuses the
// strides.
void make_maps(const AttentionParams& params, int head_dim, RunArgs& args) {
  const bool paged = params.page_table != nullptr;
  const int64_t page_rows = paged ? params.page_size : params.total_kv_rows;
  const int keys = box_keys(params);
  if (keys == 0) return;
  const int64_t sizes[] = {head_dim, params.num_heads_kv, page_rows, params.total_kv_rows / page_rows};
  const auto make = [&](int rows, CUtensorMapL2promotion promotion, hopper_decode::BoxMaps& maps) {
    const auto one = [&](const void* data, int64_t page_stride, int64_t row_stride, int64_t head_stride) {
      const int64_t strides[] = {head_stride, row_stride, paged ? page_stride : page_rows * row_stride};
      const int box[] = {64, 1, rows, 1};
      return make_tensor_map(data, params.kv_dtype, sizes, strides, box, promotion);
    };
    const auto k = one(params.k, params.k_page_stride, params.k_row_stride, params.k_head_stride);
    const auto v = one(params.v, params.v_page_stride, params.v_row_stride, params.v_head_stride);
    if (!k.ok() || !v.ok()) return false;
    maps = {.k = *k, .v = *v};
    return true;
  };
  if (!make(keys, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, args.boxes) ||
      !make(keys, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, args.near_boxes)) {
    return;
  }
  args.box_keys = keys;
  // With split_size, what else is in the batch must not choose.
  args.has_short_boxes = params.head_dim == 128 && keys == 32 && params.split_size == 0 &&
                         make(16, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, args.short_boxes);
}

RunArgs make_args(const AttentionParams& params, int head_dim, const Layout& layout, char* scratch) {
  RunArgs args = {};
  make_maps(params, head_dim, args);
  args.q = static_cast<const uint16_t*>(params.q);
  args.k = static_cast<const uint16_t*>(params.k);
  args.v = static_cast<const uint16_t*>(params.v);
  args.out = params.out;
  args.softmax_lse = params.softmax_lse;
  args.page_table = params.page_table;
  args.sinks = params.sinks;
  args.workers = reinterpret_cast<const hopper_decode::Worker*>(scratch + layout.workers_offset);
  args.items = reinterpret_cast<const hopper_decode::Item*>(scratch + layout.items_offset);
  args.slots = reinterpret_cast<float*>(scratch + layout.slots_offset);
  args.sums = reinterpret_cast<float*>(scratch + layout.sums_offset);
  args.q_row_stride = params.q_row_stride;
  args.q_head_stride = params.q_head_stride;
  args.k_page_stride = params.k_page_stride;
  args.k_row_stride = params.k_row_stride;
  args.k_head_stride = params.k_head_stride;
  args.v_page_stride = params.v_page_stride;
  args.v_row_stride = params.v_row_stride;
  args.v_head_stride = params.v_head_stride;
  args.out_row_stride = params.out_row_stride;
  args.out_head_stride = params.out_head_stride;
  args.page_table_stride = params.page_table_stride;
  args.total_kv_rows = params.total_kv_rows;
  const int64_t all_heads = int64_t{layout.heads_abreast} * head_dim;
  args.rows_adjoin = params.k_head_stride == head_dim && params.k_row_stride == all_heads &&
                     params.v_head_stride == head_dim && params.v_row_stride == all_heads;
  args.page_size = hopper_decode::make_divisor(params.page_table != nullptr ? params.page_size : 1);
  args.out_is_float = params.out_dtype == DType::kF32;
  args.batch = params.batch;
  args.total_q = params.total_q;
  args.num_heads_kv = params.num_heads_kv;
  args.heads_abreast = hopper_decode::make_divisor(layout.heads_abreast);
  args.max_slots = static_cast<int32_t>(layout.max_slots);
  args.group = hopper_decode::make_divisor(params.num_heads / params.num_heads_kv);
  args.slot_rows = layout.slot_rows;
  args.mask = hopper_decode::make_mask(params);
  constexpr float kLog2E = 1.4426950408889634f;
  args.softcap = params.softcap;
  args.score_scale = params.softcap > 0.0f ? params.softmax_scale / params.softcap : params.softmax_scale * kLog2E;
  return args;
}

Status run(const AttentionParams& params, const GpuInfo& gpu, const CudaScratch& scratch, CUstream_st* stream) {
  if (params.batch == 0 || params.total_q == 0) return ok_status();
  const Layout places = layout(params, gpu);
  const bool pairs = reads_pairs(params);
  const RunArgs args =
      make_args(as_read(params), pairs ? 128 : params.head_dim, places, static_cast<char*>(scratch.data));
  if (pairs && args.box_keys == 0) {
    return invalid_argument("hopper-decode: k and v: expected strides that the driver takes for tensor maps");
  }
  const Launch launch = {
      .blocks = places.workers * places.heads_abreast, .bf16 = params.q_dtype == DType::kBF16, .pairs = pairs};
  if (params.head_dim == 64) return hopper_decode::launch_decode_64(args, launch, stream);
  if (params.head_dim == 128) return hopper_decode::launch_decode_128(args, launch, stream);
  return hopper_decode::launch_decode_256(args, launch, stream);
}

}  // namespace

const CudaAttentionKernel kHopperDecode = {
    .name = "hopper-decode", .supports = supports, .scratch_bytes = scratch_bytes, .plan = plan, .run = run};

}  // namespace onepass
