#include "attention/cpu/flash_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "attention/cpu/flash_plan.h"
#include "attention/cpu/flash_tile.h"
#include "base/check.h"

namespace onepass {
namespace {

using cpu::FlashAhead;
using cpu::FlashItem;
using cpu::FlashKernels;
using cpu::kMaxTileRows;

constexpr int kMaxHeadDim = 512;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2e = std::numbers::log2e_v<float>;

int padded(int head_dim) { return (head_dim + 15) / 16 * 16; }

const FlashKernels& kernels_for(CpuIsa isa, DType dtype) {
  const cpu::FlashKernelTable& table = isa == CpuIsa::kAvx512Bf16 ? cpu::avx512bf16::kFlashKernels
                                       : isa == CpuIsa::kAvx512   ? cpu::avx512::kFlashKernels
                                       : isa == CpuIsa::kAvx2     ? cpu::avx2::kFlashKernels
                                                                  : cpu::portable::kFlashKernels;
  return dtype == DType::kF32 ? table.f32 : dtype == DType::kF16 ? table.f16 : table.bf16;
}

// Rows of float32 (or anything else) to bf16, in a loop that compilers vectorise; NaN aside, as to_bfloat16.
void round_to_bf16(const float* from, int count, uint16_t* to) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, 4);
    to[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// One thread's scratch memory, cut out of the workspace. `rows`: of the largest item.
struct ThreadScratch {
  float* q;         // [rows, head_dim] float32, or bf16 in half of it
  float* o;         // [rows, head_dim_v]
  float* max;       // [rows]
  float* sum;       // [rows]
  float* tile;      // of the kernels
  float* staged_k;  // [max_keys, head_dim]: rows whose length is not a multiple of 16, filled up with zeros
  float* staged_v;

  static size_t floats(const FlashKernels& kernels, int rows, int head_dim, int head_dim_v) {
    return static_cast<size_t>(rows) * (head_dim + head_dim_v + 2) +
           kernels.scratch_bytes(head_dim, head_dim_v) / sizeof(float) + kernels.max_keys * (head_dim + head_dim_v) +
           16;
  }
  ThreadScratch(float* memory, const FlashKernels& kernels, int rows, int head_dim, int head_dim_v) {
    tile = memory;
    q = tile + kernels.scratch_bytes(head_dim, head_dim_v) / sizeof(float);
    o = q + static_cast<size_t>(rows) * head_dim;
    staged_k = o + static_cast<size_t>(rows) * head_dim_v;
    staged_v = staged_k + kernels.max_keys * head_dim;
    max = staged_v + kernels.max_keys * head_dim_v;
    sum = max + rows;
  }
};

// The addresses of a range of a request's K and V rows, by way of the page table.
class KeyRows {
 public:
  KeyRows(const AttentionParams& p, int request, int head_kv)
      : p_(p), request_(request), element_(static_cast<int64_t>(size_of(p.kv_dtype))) {
    k_ = static_cast<const std::byte*>(p.k) + head_kv * p.k_head_stride * element_;
    v_ = static_cast<const std::byte*>(p.v) + head_kv * p.v_head_stride * element_;
  }

  void locate(int64_t begin, int count, const void** k, const void** v) const {
    if (p_.page_table == nullptr) {
      for (int i = 0; i < count; ++i) {
        const int64_t row = p_.cu_seqlens_k[request_] + begin + i;
        k[i] = k_ + row * p_.k_row_stride * element_;
        v[i] = v_ + row * p_.v_row_stride * element_;
      }
      return;
    }
    const int32_t* const table = p_.page_table + request_ * p_.page_table_stride;
    int64_t page = begin / p_.page_size, offset = begin % p_.page_size;
    for (int i = 0; i < count; ++page, offset = 0) {
      const std::byte* const k_page = k_ + table[page] * p_.k_page_stride * element_;
      const std::byte* const v_page = v_ + table[page] * p_.v_page_stride * element_;
      for (; offset < p_.page_size && i < count; ++offset, ++i) {
        k[i] = k_page + offset * p_.k_row_stride * element_;
        v[i] = v_page + offset * p_.v_row_stride * element_;
      }
    }
  }

 private:
  const AttentionParams& p_;
  const int request_;
  const int64_t element_;
  const std::byte* k_;
  const std::byte* v_;
};

// The cache lines of rows of `bytes`; rows that lie one after the other are one run.
void append_runs(const void* const* rows, int count, int64_t bytes, FlashAhead::Run* runs, int& num_runs) {
  for (int i = 0; i < count;) {
    const char* const begin = static_cast<const char*>(rows[i]);
    int64_t size = bytes;
    for (++i; i < count && rows[i] == begin + size; ++i) size += bytes;
    runs[num_runs++] = {begin, static_cast<int>((size + 63) / 64)};
  }
}

class FlashAttention {
 public:
  FlashAttention(const AttentionParams& params, FlashAttentionWorkspace& workspace, const Stream& stream)
      : p_(params),
        stream_(stream),
        kernels_(kernels_for(stream.isa, params.kv_dtype)),
        group_(params.num_heads / params.num_heads_kv),
        head_dim_(padded(params.head_dim)),
        head_dim_v_(padded(params.head_dim_v)),
        plan_(cpu::plan_flash_attention(params, stream.pool->num_threads())) {
    const size_t partial = plan_.partial_rows * (head_dim_v_ + 2);
    scratch_floats_ = (ThreadScratch::floats(kernels_, plan_.max_item_rows, head_dim_, head_dim_v_) + 15) / 16 * 16;
    float* const memory = workspace.reserve(scratch_floats_ * stream.pool->num_threads() + partial);
    scratch_ = memory;
    partial_o_ = memory + scratch_floats_ * stream.pool->num_threads();
    partial_max_ = partial_o_ + plan_.partial_rows * head_dim_v_;
    partial_sum_ = partial_max_ + plan_.partial_rows;
  }

  void run() {
    stream_.pool->parallel_dynamic(static_cast<int64_t>(plan_.items.size()),
                                   [&](int64_t i, int thread) { compute(plan_.items[i], thread); });
    // By KV heads: a lone sequence is merged by all threads.
    const int64_t heads = p_.num_heads_kv;
    stream_.pool->parallel_dynamic(static_cast<int64_t>(plan_.merges.size()) * heads, [&](int64_t i, int) {
      const cpu::FlashMerge& parts = plan_.merges[i / heads];
      if (i % heads < parts.item.heads) merge(parts, static_cast<int>(i % heads));
    });
  }

 private:
  // An item's rows, counted through its KV heads one after the other.
  int64_t token_row(const FlashItem& item, int row) const {
    return p_.cu_seqlens_q[item.request] + (item.first_row + row % item.rows) / group_;
  }
  int head_kv(const FlashItem& item, int row) const { return item.head_kv + row / item.rows; }
  int head(const FlashItem& item, int row) const {
    return head_kv(item, row) * group_ + static_cast<int>((item.first_row + row % item.rows) % group_);
  }

  void load_queries(const FlashItem& item, float* q) const {
    alignas(64) float row[kMaxHeadDim];
    std::fill(row + p_.head_dim, row + head_dim_, 0.0f);
    for (int r = 0; r < item.rows * item.heads; ++r) {
      const int64_t at = token_row(item, r) * p_.q_row_stride + head(item, r) * p_.q_head_stride;
      const float* from = row;
      if (p_.q_dtype == DType::kF32 && p_.head_dim == head_dim_) {
        from = static_cast<const float*>(p_.q) + at;
      } else {
        convert_to_float(static_cast<const std::byte*>(p_.q) + at * static_cast<int64_t>(size_of(p_.q_dtype)),
                         p_.q_dtype, p_.head_dim, row);
      }
      if (kernels_.q_is_bf16) {
        round_to_bf16(from, head_dim_, reinterpret_cast<uint16_t*>(q) + r * head_dim_);
      } else {
        std::copy_n(from, head_dim_, q + r * head_dim_);
      }
    }
  }

  // Copies of rows that are not whole vectors long; returns where they lie, in `staged_rows`.
  const void* const* stage(const void* const* rows, int64_t offset, int count, int head_dim, int padded_dim,
                           float* staged, const void** staged_rows) const {
    const int64_t element = static_cast<int64_t>(size_of(p_.kv_dtype));
    std::byte* to = reinterpret_cast<std::byte*>(staged);
    for (int i = 0; i < count; ++i, to += padded_dim * element) {
      std::memcpy(to, static_cast<const std::byte*>(rows[i]) + offset, head_dim * element);
      std::memset(to + head_dim * element, 0, (padded_dim - head_dim) * element);
      staged_rows[i] = to;
    }
    return staged_rows;
  }

  void compute(const FlashItem& item, int thread) {
    ThreadScratch scratch(scratch_ + thread * scratch_floats_, kernels_, plan_.max_item_rows, head_dim_, head_dim_v_);
    const int num_rows = item.rows * item.heads;
    load_queries(item, scratch.q);
    if (kernels_.stream != nullptr && cpu::can_stream(p_, item)) {
      stream_keys(item, scratch);
    } else {
      absorb_keys(item, scratch);
    }
    if (item.partial < 0) {
      for (int r = 0; r < num_rows; ++r) finish(item, r, scratch.o + r * head_dim_v_, scratch.max[r], scratch.sum[r]);
      return;
    }
    // Parts lie side by side and are written once, at the end: the processor's prefetching runs past the end of what a
    // thread works on, and where that is another thread's the lines go to and fro (a decode took 0.95 ms, now 0.50).
    std::copy_n(scratch.o, num_rows * head_dim_v_, partial_o_ + item.partial * head_dim_v_);
    std::copy_n(scratch.max, num_rows, partial_max_ + item.partial);
    std::copy_n(scratch.sum, num_rows, partial_sum_ + item.partial);
  }

  void stream_keys(const FlashItem& item, const ThreadScratch& scratch) const {
    constexpr int64_t kLimit = 1 << 30;
    const int64_t element = static_cast<int64_t>(size_of(p_.kv_dtype));
    int32_t first[kMaxTileRows], last[kMaxTileRows];
    for (int r = 0; r < item.rows; ++r) {
      const cpu::KeyRange visible = cpu::visible_keys(p_, item.request, (item.first_row + r) / group_);
      first[r] = static_cast<int32_t>(std::clamp<int64_t>(visible.first - item.key_begin, -1, kLimit));
      last[r] = static_cast<int32_t>(
          std::clamp<int64_t>(std::min(visible.last, item.key_end - 1) - item.key_begin, -1, kLimit));
    }
    float scale[cpu::kMaxStreamRows];
    for (int head = 0; head < item.heads; ++head) scale[head] = scale_of_scores(item, item.head_kv + head);
    const bool paged = p_.page_table != nullptr;
    const int64_t first_row = paged ? 0 : p_.cu_seqlens_k[item.request];
    const int64_t k_at = item.head_kv * p_.k_head_stride + first_row * p_.k_row_stride;
    const int64_t v_at = item.head_kv * p_.v_head_stride + first_row * p_.v_row_stride;
    kernels_.stream({.heads = item.heads,
                     .rows = item.rows,
                     .head_dim = head_dim_,
                     .head_dim_v = head_dim_v_,
                     .q = scratch.q,
                     .o = scratch.o,
                     .max = scratch.max,
                     .sum = scratch.sum,
                     .scale = scale,
                     .softcap = p_.softcap * kLog2e,
                     .first = first,
                     .last = last,
                     .begin = item.key_begin,
                     .count = item.key_end - item.key_begin,
                     .k = static_cast<const char*>(p_.k) + k_at * element,
                     .v = static_cast<const char*>(p_.v) + v_at * element,
                     .k_head_stride = p_.k_head_stride * element,
                     .k_row_stride = p_.k_row_stride * element,
                     .k_page_stride = p_.k_page_stride * element,
                     .v_head_stride = p_.v_head_stride * element,
                     .v_row_stride = p_.v_row_stride * element,
                     .v_page_stride = p_.v_page_stride * element,
                     .page_table = paged ? p_.page_table + item.request * p_.page_table_stride : nullptr,
                     .page_size = p_.page_size});
  }

  // Keys of one tile. With several KV heads they are few enough that two tiles of all heads fit the L2 cache beside
  // each other.
  int tile_keys(const FlashItem& item) const {
    constexpr int64_t kTileBytes = 256 << 10;
    if (item.heads == 1) return kernels_.max_keys;
    const int64_t token_bytes = item.heads * (p_.head_dim + p_.head_dim_v) * static_cast<int64_t>(size_of(p_.kv_dtype));
    return static_cast<int>(std::clamp<int64_t>(kTileBytes / token_bytes / 16 * 16, 16, kernels_.max_keys));
  }

  void absorb_keys(const FlashItem& item, const ThreadScratch& scratch) const {
    const int num_rows = item.rows * item.heads;
    std::fill_n(scratch.o, num_rows * head_dim_v_, 0.0f);
    std::fill_n(scratch.max, num_rows, -kInfinity);
    std::fill_n(scratch.sum, num_rows, 0.0f);
    // The rows of the first KV head; those of the others follow.
    const cpu::FlashRows rows{.rows = item.rows,
                              .direct = item.direct,
                              .head_dim = head_dim_,
                              .head_dim_v = head_dim_v_,
                              .q = scratch.q,
                              .o = scratch.o,
                              .max = scratch.max,
                              .sum = scratch.sum};
    constexpr int kLimit = 1 << 20;
    constexpr int kMaxKeys = 256;
    ONEPASS_CHECK_LE(kernels_.max_keys, kMaxKeys);
    const int64_t element = static_cast<int64_t>(size_of(p_.kv_dtype));
    cpu::KeyRange visible[kMaxTileRows];
    for (int r = 0; r < item.rows; ++r) visible[r] = cpu::visible_keys(p_, item.request, (item.first_row + r) / group_);

    const KeyRows key_rows(p_, item.request, item.head_kv);
    const int keys = tile_keys(item);
    const void* k[2][kMaxKeys];  // of the first KV head, this tile and the next
    const void* v[2][kMaxKeys];
    const void* staged_k[kMaxKeys];
    const void* staged_v[kMaxKeys];
    int32_t first[kMaxTileRows], last[kMaxTileRows];
    const auto count_from = [&](int64_t begin) {
      return static_cast<int>(std::clamp<int64_t>(item.key_end - begin, 0, keys));
    };
    FlashAhead::Run runs[2 * kMaxKeys];
    int current = 0;
    key_rows.locate(item.key_begin, count_from(item.key_begin), k[0], v[0]);
    for (int64_t begin = item.key_begin; begin < item.key_end; begin += keys) {
      const int count = count_from(begin), next_count = count_from(begin + count);
      key_rows.locate(begin + count, next_count, k[1 - current], v[1 - current]);
      const int64_t k_bytes = ((item.heads - 1) * p_.k_head_stride + p_.head_dim) * element;
      const int64_t v_bytes = ((item.heads - 1) * p_.v_head_stride + p_.head_dim_v) * element;
      int num_runs = 0;
      append_runs(k[1 - current], next_count, k_bytes, runs, num_runs);
      append_runs(v[1 - current], next_count, v_bytes, runs, num_runs);
      int64_t lines = 0;
      for (int run = 0; run < num_runs; ++run) lines += runs[run].lines;
      FlashAhead ahead{.end = runs + num_runs, .cursors = {{runs, 0}, {runs, 0}, {runs, 0}}};
      for (int r = 0; r < item.rows; ++r) {
        first[r] = static_cast<int32_t>(std::clamp<int64_t>(visible[r].first - begin, -kLimit, kLimit));
        last[r] = static_cast<int32_t>(std::clamp<int64_t>(visible[r].last - begin, -kLimit, kLimit));
      }
      for (int head = 0; head < item.heads; ++head) {
        int64_t k_offset = head * p_.k_head_stride * element, v_offset = head * p_.v_head_stride * element;
        const void* const* k_rows = k[current];
        const void* const* v_rows = v[current];
        if (p_.head_dim != head_dim_) {
          k_rows = stage(k_rows, k_offset, count, p_.head_dim, head_dim_, scratch.staged_k, staged_k);
          k_offset = 0;
        }
        if (p_.head_dim_v != head_dim_v_) {
          v_rows = stage(v_rows, v_offset, count, p_.head_dim_v, head_dim_v_, scratch.staged_v, staged_v);
          v_offset = 0;
        }
        cpu::FlashRows head_rows = rows;
        head_rows.q = static_cast<const std::byte*>(rows.q) +
                      int64_t{head} * rows.rows * head_dim_ * (kernels_.q_is_bf16 ? 2 : 4);
        head_rows.o += head * rows.rows * head_dim_v_;
        head_rows.max += head * rows.rows;
        head_rows.sum += head * rows.rows;
        kernels_.absorb(head_rows,
                        {.count = count,
                         .k = k_rows,
                         .v = v_rows,
                         .k_offset = k_offset,
                         .v_offset = v_offset,
                         .first = first,
                         .last = last,
                         .ahead = &ahead,
                         // Each head asks for its share of the next tile, in the order of memory.
                         .ahead_lines = static_cast<int>(lines * (head + 1) / item.heads - lines * head / item.heads),
                         .scale = scale_of_scores(item, item.head_kv + head),
                         .softcap = p_.softcap * kLog2e,
                         .scratch = scratch.tile});
      }
      current = 1 - current;
    }
  }

  // What q . k is multiplied by: to units of log 2, or of the soft cap.
  float scale_of_scores(const FlashItem& item, int head_kv) const {
    const float scale =
        p_.softmax_scale * scale_of(p_.q_descale, item, head_kv) * scale_of(p_.k_descale, item, head_kv);
    return p_.softcap > 0.0f ? scale / p_.softcap : scale * kLog2e;
  }

  float scale_of(const float* scales, const FlashItem& item, int head_kv) const {
    return scales == nullptr ? 1.0f : scales[item.request * p_.num_heads_kv + head_kv];
  }

  // The row's result from its whole sum; max is in units of log 2.
  void finish(const FlashItem& item, int row, const float* o, float max, float sum) const {
    float lse = -kInfinity, factor = 0.0f;
    if (sum > 0.0f) {
      if (p_.sinks != nullptr) {
        const float sink = p_.sinks[head(item, row)] * kLog2e, new_max = std::max(max, sink);
        factor = std::exp2(max - new_max);
        sum = sum * factor + std::exp2(sink - new_max);
        max = new_max;
      } else {
        factor = 1.0f;
      }
      lse = (max + std::log2(sum)) * std::numbers::ln2_v<float>;
      factor *= scale_of(p_.v_descale, item, head_kv(item, row)) / sum;
    }
    const int64_t at = token_row(item, row) * p_.out_row_stride + head(item, row) * p_.out_head_stride;
    if (p_.out_dtype == DType::kF32) {
      float* const out = static_cast<float*>(p_.out) + at;
      for (int i = 0; i < p_.head_dim_v; ++i) out[i] = o[i] * factor;
    } else {
      for (int i = 0; i < p_.head_dim_v; ++i) store_float(p_.out, p_.out_dtype, at + i, o[i] * factor);
    }
    if (p_.softmax_lse != nullptr) p_.softmax_lse[int64_t{head(item, row)} * p_.total_q + token_row(item, row)] = lse;
  }

  // The parts of a tile, in the order of their keys; empty ones have max = -inf and weigh nothing.
  void merge(const cpu::FlashMerge& merge, int head) const {
    const FlashItem& item = merge.item;
    const int num_rows = item.rows * item.heads;
    float o[kMaxHeadDim];
    for (int row = head * item.rows; row < (head + 1) * item.rows; ++row) {
      float max = -kInfinity, sum = 0.0f;
      for (int part = 0; part < merge.count; ++part)
        max = std::max(max, partial_max_[item.partial + part * num_rows + row]);
      std::fill_n(o, head_dim_v_, 0.0f);
      for (int part = 0; part < merge.count && max > -kInfinity; ++part) {
        const int64_t at = item.partial + part * num_rows + row;
        const float weight = std::exp2(partial_max_[at] - max);
        sum += partial_sum_[at] * weight;
        for (int i = 0; i < head_dim_v_; ++i) o[i] += partial_o_[at * head_dim_v_ + i] * weight;
      }
      finish(item, row, o, max, sum);
    }
  }

  const AttentionParams& p_;
  const Stream& stream_;
  const FlashKernels& kernels_;
  const int group_;
  const int head_dim_;
  const int head_dim_v_;
  const cpu::FlashPlan plan_;
  size_t scratch_floats_ = 0;
  float* scratch_ = nullptr;
  float* partial_o_ = nullptr;    // [partial_rows, head_dim_v]
  float* partial_max_ = nullptr;  // [partial_rows]
  float* partial_sum_ = nullptr;
};

}  // namespace

float* FlashAttentionWorkspace::reserve(size_t floats) {
  if (memory_.size() < floats + 16) memory_.resize(floats + 16);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

Status flash_attention_cpu_supports(const AttentionParams& params) {
  ONEPASS_RETURN_IF_ERROR(validate(params));
  for (int head_dim : {params.head_dim, params.head_dim_v}) {
    if (head_dim > kMaxHeadDim) {
      return unimplemented("attention: head_dim: expected at most ", kMaxHeadDim, " on the CPU, found ", head_dim);
    }
  }
  return ok_status();
}

void flash_attention_cpu(const AttentionParams& params, FlashAttentionWorkspace& workspace, const Stream& stream) {
  if (const Status status = flash_attention_cpu_supports(params); !status.ok()) {
    check_failed(__FILE__, __LINE__, std::string(status.message()));
  }
  FlashAttention(params, workspace, stream).run();
}

}  // namespace onepass
