#include "attention/cuda/testing/device_problem.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace onepass {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr uint8_t kNaNByte = 0xff;      // all ones is NaN in every floating dtype
constexpr int32_t kLastPage = 1 << 30;  // ids above stand for "no page"

bool untouched(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{kNaNByte}; });
}

// Allocates on first use; later contents must fit.
Status assign(CudaBuffer& buffer, std::span<const std::byte> bytes, size_t extra = 0) {
  if (buffer.data() == nullptr) {
    ONEPASS_ASSIGN_OR_RETURN(buffer, CudaBuffer::allocate(bytes.size() + extra));
  }
  ONEPASS_CHECK_LE(bytes.size() + extra, buffer.size());
  return buffer.upload(bytes);
}

}  // namespace

StatusOr<DeviceProblem> DeviceProblem::make(const AttentionSpec& spec, int64_t leading_elements) {
  DeviceProblem problem{AttentionProblem(spec)};
  const AttentionParams& p = problem.host_.params();
  problem.params_ = p;
  if (leading_elements > 0) {
    const int64_t rows = (leading_elements + p.k_row_stride - 1) / p.k_row_stride;
    const int64_t page_size = std::max(1, p.page_size);
    problem.leading_rows_ = (rows + page_size - 1) / page_size * page_size;
    problem.params_.total_kv_rows += problem.leading_rows_;
  }
  ONEPASS_RETURN_IF_ERROR(problem.upload());
  AttentionParams& d = problem.params_;
  d.q = problem.q_.data();
  d.k = problem.k_.data();
  d.v = problem.v_.data();
  d.out = problem.out_.data();
  d.softmax_lse = problem.lse_.as<float>();
  d.cu_seqlens_q = problem.cu_seqlens_q_.as<int32_t>();
  d.cache_seqlens = problem.cache_seqlens_.as<int32_t>();
  if (p.cu_seqlens_k != nullptr) d.cu_seqlens_k = problem.cu_seqlens_k_.as<int32_t>();
  if (p.page_table != nullptr) d.page_table = problem.page_table_.as<int32_t>();
  if (p.sinks != nullptr) d.sinks = problem.sinks_.as<float>();
  if (p.q_descale != nullptr) d.q_descale = problem.q_descale_.as<float>();
  if (p.k_descale != nullptr) d.k_descale = problem.k_descale_.as<float>();
  if (p.v_descale != nullptr) d.v_descale = problem.v_descale_.as<float>();
  return problem;
}

Status DeviceProblem::upload() {
  const AttentionProblem::Memory m = host_.memory();
  ONEPASS_RETURN_IF_ERROR(assign(q_, m.q));
  ONEPASS_RETURN_IF_ERROR(upload_keys());
  ONEPASS_RETURN_IF_ERROR(assign(out_, m.out, kGuardBytes));
  ONEPASS_RETURN_IF_ERROR(assign(lse_, m.softmax_lse, kGuardBytes));
  ONEPASS_RETURN_IF_ERROR(clear_output());
  ONEPASS_RETURN_IF_ERROR(assign(cu_seqlens_q_, m.cu_seqlens_q));
  ONEPASS_RETURN_IF_ERROR(assign(cache_seqlens_, m.cache_seqlens));
  ONEPASS_RETURN_IF_ERROR(assign(sinks_, m.sinks));
  ONEPASS_RETURN_IF_ERROR(assign(q_descale_, m.q_descale));
  ONEPASS_RETURN_IF_ERROR(assign(k_descale_, m.k_descale));
  return assign(v_descale_, m.v_descale);
}

// K, V and where they lie, moved behind leading_rows_ rows of NaN.
Status DeviceProblem::upload_keys() {
  const AttentionProblem::Memory m = host_.memory();
  const AttentionParams& p = host_.params();
  const auto element = static_cast<int64_t>(size_of(p.kv_dtype));
  const size_t k_offset = leading_rows_ * p.k_row_stride * element, v_offset = leading_rows_ * p.v_row_stride * element;
  if (k_.data() == nullptr) {
    ONEPASS_ASSIGN_OR_RETURN(k_, CudaBuffer::allocate(k_offset + m.k.size()));
    ONEPASS_ASSIGN_OR_RETURN(v_, CudaBuffer::allocate(v_offset + m.v.size()));
  }
  ONEPASS_RETURN_IF_ERROR(k_.fill(kNaNByte));
  ONEPASS_RETURN_IF_ERROR(v_.fill(kNaNByte));
  ONEPASS_RETURN_IF_ERROR(k_.upload(m.k, k_offset));
  ONEPASS_RETURN_IF_ERROR(v_.upload(m.v, v_offset));

  const auto moved = [](std::span<const std::byte> bytes, int64_t by) {
    const auto* first = reinterpret_cast<const int32_t*>(bytes.data());
    std::vector<int32_t> values(first, first + bytes.size() / sizeof(int32_t));
    for (int32_t& value : values) {
      if (value < kLastPage) value += static_cast<int32_t>(by);
    }
    return values;
  };
  const bool paged = p.page_table != nullptr;
  const std::vector<int32_t> places =
      paged ? moved(m.page_table, leading_rows_ / p.page_size) : moved(m.cu_seqlens_k, leading_rows_);
  return assign(paged ? page_table_ : cu_seqlens_k_, std::as_bytes(std::span(places)));
}

Status DeviceProblem::overwrite(const AttentionSpec& spec) {
  ONEPASS_CHECK_EQ(leading_rows_, 0);
  host_ = AttentionProblem(spec);
  const AttentionParams& p = host_.params();
  ONEPASS_CHECK_EQ(p.batch, params_.batch);
  ONEPASS_CHECK_LE(p.total_q, params_.total_q);
  ONEPASS_CHECK_LE(p.max_seqlen_q, params_.max_seqlen_q);
  ONEPASS_CHECK_EQ(p.page_table_stride, params_.page_table_stride);
  ONEPASS_CHECK_EQ(p.q_row_stride, params_.q_row_stride);
  ONEPASS_CHECK_EQ(p.k_row_stride, params_.k_row_stride);
  return upload();
}

Status DeviceProblem::clear_output() {
  ONEPASS_RETURN_IF_ERROR(out_.fill(kNaNByte));
  return lse_.fill(kNaNByte);
}

StatusOr<AttentionResult> DeviceProblem::result() {
  std::vector<std::byte> out(out_.size()), lse(lse_.size());
  ONEPASS_RETURN_IF_ERROR(out_.download(out));
  ONEPASS_RETURN_IF_ERROR(lse_.download(lse));
  const AttentionParams& p = host_.params();
  const int64_t row_size = int64_t{p.num_heads} * p.head_dim_v;
  const auto element = static_cast<int64_t>(size_of(p.out_dtype));

  AttentionResult result{.num_heads = p.num_heads, .head_dim_v = p.head_dim_v, .out = {}, .lse = {}};
  result.out.resize(p.total_q * row_size);
  padding_intact_ = true;
  for (int64_t row = 0; row < p.total_q; ++row) {
    const std::span<const std::byte> bytes = std::span(out).subspan(row * p.out_row_stride * element);
    convert_to_float(bytes.data(), p.out_dtype, row_size, result.out.data() + row * row_size);
    const int64_t padding = p.out_row_stride - row_size;
    padding_intact_ = padding_intact_ && untouched(bytes.subspan(row_size * element, padding * element));
  }
  padding_intact_ = padding_intact_ && untouched(std::span(out).subspan(p.total_q * p.out_row_stride * element));

  // Heads are params_.total_q apart, which an overwrite() may have left larger than the number of rows.
  const auto* values = reinterpret_cast<const float*>(lse.data());
  for (int64_t head = 0; head < p.num_heads; ++head) {
    const float* row = values + head * params_.total_q;
    result.lse.insert(result.lse.end(), row, row + p.total_q);
    const auto behind = std::as_bytes(std::span(row + p.total_q, row + params_.total_q));
    padding_intact_ = padding_intact_ && untouched(behind);
  }
  const int64_t lse_bytes = int64_t{p.num_heads} * params_.total_q * static_cast<int64_t>(sizeof(float));
  padding_intact_ = padding_intact_ && untouched(std::span(lse).subspan(lse_bytes));
  return result;
}

}  // namespace onepass
