#include "attention/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "base/check.h"

namespace onepass {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One query row of one head, and the request that it belongs to.
struct QueryRow {
  int request = 0;
  int64_t row = 0;       // of q, out and softmax_lse
  int64_t position = 0;  // of the row among its request's keys; negative when there are more queries than keys
  int64_t seqlen_k = 0;
  int head = 0;
  int head_kv = 0;
};

// One thread's scratch memory.
struct Workspace {
  std::vector<double> q;              // [head_dim]
  std::vector<int64_t> visible_keys;  // [up to seqlen_k]
  std::vector<double> scores;         // of the visible keys
  std::vector<double> out;            // [head_dim_v]
};

QueryRow locate(const AttentionParams& p, int64_t row, int head) {
  // The last request that begins at or before `row`: requests without queries begin where their successor does.
  const int32_t* after = std::upper_bound(p.cu_seqlens_q, p.cu_seqlens_q + p.batch + 1, row);
  const int request = static_cast<int>(after - p.cu_seqlens_q) - 1;
  const int64_t seqlen_q = p.cu_seqlens_q[request + 1] - p.cu_seqlens_q[request];
  const int64_t seqlen_k = p.cache_seqlens[request];
  return {.request = request,
          .row = row,
          .position = seqlen_k - seqlen_q + (row - p.cu_seqlens_q[request]),
          .seqlen_k = seqlen_k,
          .head = head,
          .head_kv = head / (p.num_heads / p.num_heads_kv)};
}

// Rounds down, as positions may be negative.
int64_t chunk_of(int64_t position, int64_t chunk) {
  return position >= 0 ? position / chunk : -((-position + chunk - 1) / chunk);
}

// The mask of attention_params.h, line by line.
bool sees(const AttentionParams& p, int64_t position, int64_t key) {
  if (p.causal && key > position) return false;
  if (p.window_left >= 0 && key < position - p.window_left) return false;
  if (p.window_right >= 0 && key > position + p.window_right) return false;
  if (p.attention_chunk > 0 && chunk_of(key, p.attention_chunk) != chunk_of(position, p.attention_chunk)) return false;
  return true;
}

// Offset in elements of key `j` of a request, in an array with the given strides: through the page table, or in rows
// that lie side by side. The table is read at j's page alone: what stands past the row's last page does not matter.
int64_t key_offset(const AttentionParams& p, int request, int64_t j, int64_t page_stride, int64_t row_stride) {
  if (p.page_table == nullptr) return (p.cu_seqlens_k[request] + j) * row_stride;
  const int64_t page = p.page_table[request * p.page_table_stride + j / p.page_size];
  return page * page_stride + j % p.page_size * row_stride;
}

double descale(const AttentionParams& p, const float* scales, const QueryRow& query) {
  return scales == nullptr ? 1.0 : scales[query.request * p.num_heads_kv + query.head_kv];
}

template <typename T>
double dot(std::span<const double> q, const T* k) {
  double sum = 0.0;
  for (size_t i = 0; i < q.size(); ++i) sum += q[i] * to_float(k[i]);
  return sum;
}

template <typename T>
void accumulate(double weight, const T* v, std::span<double> out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] += weight * to_float(v[i]);
}

void store(const AttentionParams& p, const QueryRow& query, std::span<const double> out, double lse) {
  const int64_t offset = query.row * p.out_row_stride + query.head * p.out_head_stride;
  for (size_t i = 0; i < out.size(); ++i) {
    store_float(p.out, p.out_dtype, offset + static_cast<int64_t>(i), static_cast<float>(out[i]));
  }
  if (p.softmax_lse != nullptr) p.softmax_lse[int64_t{query.head} * p.total_q + query.row] = static_cast<float>(lse);
}

// out = sum over visible keys j of exp(score_j - max) v_j / (sum of exp(score_j - max) + exp(sink - max)).
template <typename T>
void attend(const AttentionParams& p, const QueryRow& query, Workspace& work) {
  const T* k = static_cast<const T*>(p.k) + query.head_kv * p.k_head_stride;
  const T* v = static_cast<const T*>(p.v) + query.head_kv * p.v_head_stride;
  work.out.assign(p.head_dim_v, 0.0);

  work.visible_keys.clear();
  for (int64_t j = 0; j < query.seqlen_k; ++j) {
    if (sees(p, query.position, j)) work.visible_keys.push_back(j);
  }
  if (work.visible_keys.empty()) return store(p, query, work.out, -kInfinity);

  work.q.resize(p.head_dim);
  for (int i = 0; i < p.head_dim; ++i) {
    work.q[i] = load_float(p.q, p.q_dtype, query.row * p.q_row_stride + query.head * p.q_head_stride + i);
  }

  const double scale = p.softmax_scale * descale(p, p.q_descale, query) * descale(p, p.k_descale, query);
  double max = p.sinks != nullptr ? p.sinks[query.head] : -kInfinity;
  work.scores.clear();
  for (int64_t j : work.visible_keys) {
    double score = scale * dot(work.q, k + key_offset(p, query.request, j, p.k_page_stride, p.k_row_stride));
    if (p.softcap > 0.0f) score = p.softcap * std::tanh(score / p.softcap);
    work.scores.push_back(score);
    max = std::max(max, score);
  }

  double sum = p.sinks != nullptr ? std::exp(p.sinks[query.head] - max) : 0.0;
  for (size_t n = 0; n < work.scores.size(); ++n) {
    const double weight = std::exp(work.scores[n] - max);
    const int64_t j = work.visible_keys[n];
    accumulate(weight, v + key_offset(p, query.request, j, p.v_page_stride, p.v_row_stride), work.out);
    sum += weight;
  }

  const double normalizer = descale(p, p.v_descale, query) / sum;
  for (double& value : work.out) value *= normalizer;
  store(p, query, work.out, max + std::log(sum));
}

void attend(const AttentionParams& p, int64_t row, int head, Workspace& work) {
  const QueryRow query = locate(p, row, head);
  switch (p.kv_dtype) {
    case DType::kF32:
      return attend<float>(p, query, work);
    case DType::kF16:
      return attend<Float16>(p, query, work);
    case DType::kBF16:
      return attend<BFloat16>(p, query, work);
    default:
      check_failed(__FILE__, __LINE__, "reference_attention of a kv_dtype that is not fp32, fp16 or bf16");
  }
}

}  // namespace

void reference_attention(const AttentionParams& params) { reference_attention(params, Stream{}); }

void reference_attention(const AttentionParams& params, const Stream& stream) {
  if (const Status status = validate(params); !status.ok()) {
    check_failed(__FILE__, __LINE__, std::string(status.message()));
  }
  const int64_t items = int64_t{params.total_q} * params.num_heads;
  const int num_threads = stream.pool != nullptr ? stream.pool->num_threads() : 1;
  std::vector<Workspace> workspaces(num_threads);
  auto attend_item = [&](int64_t item, int thread) {
    attend(params, item / params.num_heads, static_cast<int>(item % params.num_heads), workspaces[thread]);
  };
  if (stream.pool != nullptr) {
    stream.pool->parallel_dynamic(items, attend_item);
  } else {
    for (int64_t item = 0; item < items; ++item) attend_item(item, 0);
  }
}

}  // namespace onepass
