#include "cli/bench_attention_cuda_problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int64_t kBlockElements = 4'194'301;  // a prime number

StatusOr<CudaBuffer> filled(int64_t size, const CudaBuffer& block, int64_t first) {
  ONEPASS_ASSIGN_OR_RETURN(CudaBuffer buffer, CudaBuffer::allocate(size));
  for (int64_t at = 0; at < size;) {
    const int64_t count = std::min(size - at, static_cast<int64_t>(block.size()) - first);
    ONEPASS_RETURN_IF_ERROR(cuda_status(cudaMemcpyAsync(buffer.as<std::byte>() + at, block.as<std::byte>() + first,
                                                        count, cudaMemcpyDeviceToDevice, nullptr),
                                        "fill with random numbers"));
    at += count;
    first = 0;
  }
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(nullptr), "fill with random numbers"));
  return buffer;
}

StatusOr<CudaBuffer> upload(const std::vector<int32_t>& values) {
  return CudaBuffer::copy_of(std::as_bytes(std::span(values)));
}

}  // namespace

StatusOr<CudaBuffer> random_block(DType dtype) {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kBlockElements);
  for (float& value : values) value = normal(rng);
  std::vector<std::byte> bytes(kBlockElements * size_of(dtype));
  convert_from_float(values.data(), dtype, kBlockElements, bytes.data());
  return CudaBuffer::copy_of(bytes);
}

StatusOr<CudaBenchProblem> CudaBenchProblem::make(const AttentionShape& shape, DType dtype, int64_t cold_bytes,
                                                  const CudaBuffer& block) {
  CudaBenchProblem problem;
  problem.shape_ = shape;
  const auto element = static_cast<int64_t>(size_of(dtype));
  const int64_t pages_each = shape.page_size > 0 ? (shape.seqlen_k + shape.page_size - 1) / shape.page_size : 0;
  const int64_t total_q = int64_t{shape.batch} * shape.seqlen_q;
  const int64_t kv_rows =
      shape.page_size > 0 ? shape.batch * pages_each * shape.page_size : int64_t{shape.batch} * shape.seqlen_k;
  const int64_t k_row = int64_t{shape.num_heads_kv} * shape.head_dim,
                v_row = int64_t{shape.num_heads_kv} * shape.head_dim_v;
  const int64_t q_row = int64_t{shape.num_heads} * shape.head_dim,
                out_row = int64_t{shape.num_heads} * shape.head_dim_v;
  const int64_t kv_bytes = kv_rows * (k_row + v_row) * element;
  const int64_t copies = std::max<int64_t>(1, (cold_bytes + kv_bytes - 1) / kv_bytes);

  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k, page_table(shape.batch * pages_each);
  for (int b = 0; b <= shape.batch; ++b) cu_seqlens_q.push_back(b * shape.seqlen_q);
  for (int b = 0; b <= shape.batch; ++b) cu_seqlens_k.push_back(b * shape.seqlen_k);
  std::iota(page_table.begin(), page_table.end(), 0);
  std::mt19937_64 rng(2);
  std::shuffle(page_table.begin(), page_table.end(), rng);
  ONEPASS_ASSIGN_OR_RETURN(problem.cu_seqlens_q_, upload(cu_seqlens_q));
  ONEPASS_ASSIGN_OR_RETURN(problem.cu_seqlens_k_, upload(cu_seqlens_k));
  ONEPASS_ASSIGN_OR_RETURN(problem.cache_seqlens_, upload(std::vector<int32_t>(shape.batch, shape.seqlen_k)));
  ONEPASS_ASSIGN_OR_RETURN(problem.page_table_, upload(page_table));
  ONEPASS_ASSIGN_OR_RETURN(problem.lse_, CudaBuffer::allocate(total_q * shape.num_heads * sizeof(float)));

  for (int64_t copy = 0; copy < copies; ++copy) {
    // Each begins elsewhere in the block, at an address that is a multiple of 16 bytes.
    const auto first = [&] { return static_cast<int64_t>(rng() % (kBlockElements / 2)) / 16 * 16 * element; };
    ONEPASS_ASSIGN_OR_RETURN(problem.q_.emplace_back(), filled(total_q * q_row * element, block, first()));
    ONEPASS_ASSIGN_OR_RETURN(problem.k_.emplace_back(), filled(kv_rows * k_row * element, block, first()));
    ONEPASS_ASSIGN_OR_RETURN(problem.v_.emplace_back(), filled(kv_rows * v_row * element, block, first()));
    ONEPASS_ASSIGN_OR_RETURN(problem.out_.emplace_back(), CudaBuffer::allocate(total_q * out_row * element));
    AttentionParams p{.q = problem.q_.back().data(),
                      .q_dtype = dtype,
                      .q_row_stride = q_row,
                      .q_head_stride = shape.head_dim,
                      .k = problem.k_.back().data(),
                      .v = problem.v_.back().data(),
                      .kv_dtype = dtype,
                      .k_page_stride = k_row * shape.page_size,
                      .k_row_stride = k_row,
                      .k_head_stride = shape.head_dim,
                      .v_page_stride = v_row * shape.page_size,
                      .v_row_stride = v_row,
                      .v_head_stride = shape.head_dim_v,
                      .total_kv_rows = kv_rows,
                      .out = problem.out_.back().data(),
                      .out_dtype = dtype,
                      .out_row_stride = out_row,
                      .out_head_stride = shape.head_dim_v,
                      .softmax_lse = problem.lse_.as<float>(),
                      .batch = shape.batch,
                      .total_q = static_cast<int>(total_q),
                      .max_seqlen_q = shape.seqlen_q,
                      .num_heads = shape.num_heads,
                      .num_heads_kv = shape.num_heads_kv,
                      .head_dim = shape.head_dim,
                      .head_dim_v = shape.head_dim_v,
                      .cu_seqlens_q = problem.cu_seqlens_q_.as<int32_t>(),
                      .cache_seqlens = problem.cache_seqlens_.as<int32_t>(),
                      .page_size = shape.page_size,
                      .softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                      .causal = shape.causal,
                      .softcap = shape.softcap};
    if (shape.page_size > 0) {
      p.page_table = problem.page_table_.as<int32_t>();
      p.page_table_stride = pages_each;
    } else {
      p.cu_seqlens_k = problem.cu_seqlens_k_.as<int32_t>();
    }
    problem.params_.push_back(p);
  }
  return problem;
}

Status CudaBenchProblem::poison_outputs() {
  for (CudaBuffer& out : out_) ONEPASS_RETURN_IF_ERROR(out.fill(0xff));
  return ok_status();
}

StatusOr<AttentionParams> CudaBenchProblem::part(int copy, int request, int first_row, int rows,
                                                 CudaBuffer& lengths) const {
  AttentionParams p = params_[copy];
  // Masks are aligned to the bottom right: causal rows end where the last of them ends.
  const int keys = shape_.causal ? shape_.seqlen_k - shape_.seqlen_q + first_row + rows : shape_.seqlen_k;
  const std::vector<int32_t> values = {0, rows, keys};
  ONEPASS_ASSIGN_OR_RETURN(lengths, upload(values));
  p.q = static_cast<const std::byte*>(p.q) +
        (int64_t{request} * shape_.seqlen_q + first_row) * p.q_row_stride * static_cast<int64_t>(size_of(p.q_dtype));
  p.out = nullptr;
  p.softmax_lse = nullptr;
  p.batch = 1;
  p.total_q = p.max_seqlen_q = rows;
  p.cu_seqlens_q = lengths.as<int32_t>();
  p.cache_seqlens = lengths.as<int32_t>() + 2;
  if (p.cu_seqlens_k != nullptr) p.cu_seqlens_k += request;
  if (p.page_table != nullptr) p.page_table += request * p.page_table_stride;
  return p;
}

}  // namespace onepass
