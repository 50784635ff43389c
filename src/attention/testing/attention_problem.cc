#include "attention/testing/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "attention/reference/reference_attention.h"
#include "base/check.h"

namespace onepass {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kNoPage = 2147480000;
constexpr int kGapRows = 3;  // of NaN, behind each request's keys when they are contiguous

int pick(std::mt19937_64& rng, std::span<const int> choices) { return choices[rng() % choices.size()]; }
int uniform(std::mt19937_64& rng, int low, int high) { return low + static_cast<int>(rng() % (high - low + 1)); }
bool one_in(std::mt19937_64& rng, int n) { return rng() % n == 0; }

int pages_of(int keys, int page_size) { return page_size > 0 ? (keys + page_size - 1) / page_size : 0; }

// At least one byte, so that the address is never null.
Buffer allocate(int64_t count, DType dtype) {
  StatusOr<Buffer> buffer = Buffer::allocate(std::max<size_t>(1, count * size_of(dtype)));
  ONEPASS_CHECK(buffer.ok());
  return std::move(buffer).value();
}

void fill_nan(Buffer& buffer, DType dtype) {
  for (size_t i = 0; i < buffer.size() / size_of(dtype); ++i) store_float(buffer.data(), dtype, i, kNaN);
}

// Normally distributed numbers that `dtype` represents exactly.
std::vector<float> random_values(std::mt19937_64& rng, int64_t count, DType dtype, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) {
    store_float(&value, dtype, 0, normal(rng));
    value = load_float(&value, dtype, 0);
  }
  return values;
}

std::vector<float> random_scales(std::mt19937_64& rng, int count) {
  std::uniform_real_distribution<float> uniform_scale(0.5f, 1.5f);
  std::vector<float> scales(count);
  for (float& scale : scales) scale = uniform_scale(rng);
  return scales;
}

double difference(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0.0;
  return std::isfinite(a) && std::isfinite(b) ? std::abs(a - b) : std::numeric_limits<double>::infinity();
}

std::string join(const std::vector<int>& values) {
  std::ostringstream text;
  for (size_t i = 0; i < values.size(); ++i) text << (i > 0 ? "," : "") << values[i];
  return text.str();
}

}  // namespace

std::string to_string(const AttentionSpec& s) {
  std::ostringstream text;
  text << "seed " << s.seed << ", queries " << join(s.seqlens_q) << ", keys " << join(s.seqlens_k) << ", heads "
       << s.num_heads << "/" << s.num_heads_kv << ", head_dim " << s.head_dim << "/" << s.head_dim_v << ", page_size "
       << s.page_size << ", q/kv/out " << s.q_dtype << "/" << s.kv_dtype << "/" << s.out_dtype
       << (s.causal ? ", causal" : "") << ", window " << s.window_left << "," << s.window_right << ", chunk "
       << s.attention_chunk << ", softcap " << s.softcap << (s.sinks ? ", sinks" : "")
       << (s.descales ? ", descales" : "") << ", num_splits " << s.num_splits << ", split_size " << s.split_size
       << (s.batch_invariant ? ", batch_invariant" : "") << ", score_deviation " << s.score_deviation << ", padding "
       << s.padding;
  return text.str();
}

AttentionSpec random_attention_spec(std::mt19937_64& rng, std::span<const int> head_dims, int max_seqlen_k) {
  constexpr int kPageSizes[] = {0, 1, 3, 16, 32, 64, 128, 256};
  constexpr int kGroupSizes[] = {1, 2, 3, 4, 8};
  constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  AttentionSpec spec;
  spec.seed = rng();
  spec.page_size = pick(rng, kPageSizes);
  spec.num_heads_kv = uniform(rng, 1, 3);
  spec.num_heads = spec.num_heads_kv * pick(rng, kGroupSizes);
  spec.head_dim = spec.head_dim_v = pick(rng, head_dims);
  spec.q_dtype = kDTypes[rng() % 3];
  spec.kv_dtype = kDTypes[rng() % 3];
  spec.out_dtype = kDTypes[rng() % 3];

  const int edges[] = {0, 1, std::max(1, spec.page_size), 2 * spec.page_size, 16, 64, 128, 192, max_seqlen_k};
  const int batch = uniform(rng, 1, 4);
  for (int b = 0; b < batch; ++b) {
    const int length = one_in(rng, 3) ? uniform(rng, 0, max_seqlen_k) : pick(rng, edges) + uniform(rng, -1, 1);
    const int seqlen_k = std::clamp(length, 0, max_seqlen_k);
    const int extended = std::min(seqlen_k, uniform(rng, 0, 40));
    // Decode, prefill, extend, no query, and (never in serving, but defined) more queries than keys.
    const int seqlens_q[] = {std::min(1, seqlen_k), 1, 1, seqlen_k, seqlen_k, extended, extended, 0, seqlen_k + 2};
    spec.seqlens_q.push_back(pick(rng, seqlens_q));
    spec.seqlens_k.push_back(seqlen_k);
  }

  spec.causal = !one_in(rng, 3);
  if (one_in(rng, 4)) spec.window_left = uniform(rng, 0, 70);
  if (one_in(rng, 8)) spec.window_right = uniform(rng, 0, 70);
  if (one_in(rng, 6)) spec.attention_chunk = uniform(rng, 1, 70);
  if (one_in(rng, 4)) spec.softcap = static_cast<float>(uniform(rng, 1, 30));
  spec.sinks = one_in(rng, 4);
  spec.descales = one_in(rng, 6);
  if (one_in(rng, 3)) spec.num_splits = uniform(rng, 1, 8);
  if (one_in(rng, 5)) spec.split_size = 32 * uniform(rng, 1, 4);
  spec.score_deviation = one_in(rng, 4) ? 8.0f : 1.0f;
  spec.padding = one_in(rng, 3) ? 8 : 0;
  return spec;
}

AttentionDifference compare(const AttentionResult& result, const AttentionResult& expected) {
  ONEPASS_CHECK_EQ(result.out.size(), expected.out.size());
  ONEPASS_CHECK_EQ(result.lse.size(), expected.lse.size());
  AttentionDifference worst;
  size_t out_at = 0;
  size_t lse_at = 0;
  for (size_t i = 0; i < result.out.size(); ++i) {
    const double d = difference(result.out[i], expected.out[i]);
    if (d > worst.max_out) worst.max_out = d, out_at = i;
  }
  for (size_t i = 0; i < result.lse.size(); ++i) {
    const double d = difference(result.lse[i], expected.lse[i]);
    if (d > worst.max_lse) worst.max_lse = d, lse_at = i;
  }
  std::ostringstream text;
  if (worst.max_out > 0.0) {
    const size_t head_at = out_at / expected.head_dim_v;
    text << "out[row " << head_at / expected.num_heads << ", head " << head_at % expected.num_heads << ", "
         << out_at % expected.head_dim_v << "] = " << result.out[out_at] << ", expected " << expected.out[out_at]
         << "; ";
  }
  if (worst.max_lse > 0.0) {
    const size_t total_q = expected.lse.size() / expected.num_heads;
    text << "lse[head " << lse_at / total_q << ", row " << lse_at % total_q << "] = " << result.lse[lse_at]
         << ", expected " << expected.lse[lse_at];
  }
  worst.worst = text.str();
  return worst;
}

AttentionParams attention_layout(const AttentionSpec& spec) {
  AttentionParams p = {.q_dtype = spec.q_dtype,
                       .kv_dtype = spec.kv_dtype,
                       .out_dtype = spec.out_dtype,
                       .batch = static_cast<int>(spec.seqlens_q.size()),
                       .num_heads = spec.num_heads,
                       .num_heads_kv = spec.num_heads_kv,
                       .head_dim = spec.head_dim,
                       .head_dim_v = spec.head_dim_v,
                       .page_size = spec.page_size,
                       .softmax_scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim)),
                       .causal = spec.causal,
                       .window_left = spec.window_left,
                       .window_right = spec.window_right,
                       .attention_chunk = spec.attention_chunk,
                       .softcap = spec.softcap,
                       .num_splits = spec.num_splits,
                       .split_size = spec.split_size,
                       .batch_invariant = spec.batch_invariant};
  for (int seqlen_q : spec.seqlens_q) {
    p.total_q += seqlen_q;
    p.max_seqlen_q = std::max(p.max_seqlen_q, seqlen_q);
  }
  int64_t pages = 0;
  for (int seqlen_k : spec.seqlens_k) {
    const int keys = std::max(seqlen_k, spec.capacity_k);
    p.total_kv_rows += keys + kGapRows;
    pages += pages_of(keys, spec.page_size);
    p.page_table_stride = std::max<int64_t>(p.page_table_stride, pages_of(keys, spec.page_size) + 2);
  }
  if (spec.page_size > 0) p.total_kv_rows = (pages + pages / 2 + 1) * spec.page_size;

  p.q_head_stride = p.head_dim;
  p.q_row_stride = int64_t{p.num_heads} * p.head_dim + spec.padding;
  const int kv_padding = spec.page_size > 0 ? 0 : spec.padding;
  p.k_head_stride = p.head_dim;
  p.v_head_stride = p.head_dim_v;
  p.k_row_stride = int64_t{p.num_heads_kv} * p.head_dim + kv_padding;
  p.v_row_stride = int64_t{p.num_heads_kv} * p.head_dim_v + kv_padding;
  p.k_page_stride = p.k_row_stride * spec.page_size;
  p.v_page_stride = p.v_row_stride * spec.page_size;
  p.out_head_stride = p.head_dim_v;
  p.out_row_stride = int64_t{p.num_heads} * p.head_dim_v + spec.padding;
  return p;
}

AttentionProblem::AttentionProblem(const AttentionSpec& spec) : spec_(spec), params_(attention_layout(spec)) {
  std::mt19937_64 rng(spec.seed);
  make_lengths();
  if (spec.page_size > 0) make_page_table(rng);
  make_tensors(rng);
  ONEPASS_CHECK(validate(params_).ok());
}

void AttentionProblem::make_lengths() {
  ONEPASS_CHECK_EQ(spec_.seqlens_q.size(), spec_.seqlens_k.size());
  cu_seqlens_q_ = {0};
  cu_seqlens_k_ = {0};
  int64_t key_row = 0;
  for (int b = 0; b < params_.batch; ++b) {
    cu_seqlens_q_.push_back(cu_seqlens_q_.back() + spec_.seqlens_q[b]);
    cu_seqlens_k_.push_back(cu_seqlens_k_.back() + spec_.seqlens_k[b] + kGapRows);
    first_key_row_.push_back(key_row);
    key_row += spec_.seqlens_k[b];
  }
  cache_seqlens_.assign(spec_.seqlens_k.begin(), spec_.seqlens_k.end());
  params_.cu_seqlens_q = cu_seqlens_q_.data();
  params_.cache_seqlens = cache_seqlens_.data();
  if (spec_.page_size == 0) params_.cu_seqlens_k = cu_seqlens_k_.data();
}

void AttentionProblem::make_page_table(std::mt19937_64& rng) {
  std::vector<int32_t> ids(params_.total_kv_rows / spec_.page_size);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), rng);
  page_table_.assign(params_.batch * params_.page_table_stride, kNoPage);
  for (int b = 0; b < params_.batch; ++b) {
    for (int page = 0; page < pages_of(spec_.seqlens_k[b], spec_.page_size); ++page) {
      page_table_[b * params_.page_table_stride + page] = ids.back();
      ids.pop_back();
    }
  }
  params_.page_table = page_table_.data();
}

// Copies rows [sum of seqlens_k, num_heads_kv, dim] to where the kernels look for them.
void AttentionProblem::scatter(const std::vector<float>& rows, int dim, int64_t page_stride, int64_t row_stride,
                               Buffer& storage) {
  fill_nan(storage, spec_.kv_dtype);
  const int64_t row_size = int64_t{spec_.num_heads_kv} * dim;
  for (int b = 0; b < params_.batch; ++b) {
    for (int j = 0; j < spec_.seqlens_k[b]; ++j) {
      int64_t offset = (cu_seqlens_k_[b] + j) * row_stride;
      if (spec_.page_size > 0) {
        const int64_t page = page_table_[b * params_.page_table_stride + j / spec_.page_size];
        offset = page * page_stride + j % spec_.page_size * row_stride;
      }
      convert_from_float(rows.data() + (first_key_row_[b] + j) * row_size, spec_.kv_dtype, row_size,
                         storage.data() + offset * size_of(spec_.kv_dtype));
    }
  }
}

void AttentionProblem::make_tensors(std::mt19937_64& rng) {
  AttentionParams& p = params_;
  // q.k of two rows of unit normals has deviation sqrt(head_dim), which softmax_scale divides out again.
  const int64_t total_k = std::accumulate(spec_.seqlens_k.begin(), spec_.seqlens_k.end(), int64_t{0});
  queries_ = random_values(rng, int64_t{p.total_q} * p.num_heads * p.head_dim, p.q_dtype, spec_.score_deviation);
  keys_ = random_values(rng, total_k * p.num_heads_kv * p.head_dim, p.kv_dtype, 1.0f);
  values_ = random_values(rng, total_k * p.num_heads_kv * p.head_dim_v, p.kv_dtype, 1.0f);

  q_ = allocate(p.total_q * p.q_row_stride, p.q_dtype);
  fill_nan(q_, p.q_dtype);
  const int64_t q_row_size = int64_t{p.num_heads} * p.head_dim;
  for (int64_t row = 0; row < p.total_q; ++row) {
    convert_from_float(queries_.data() + row * q_row_size, p.q_dtype, q_row_size,
                       q_.data() + row * p.q_row_stride * size_of(p.q_dtype));
  }

  k_ = allocate(p.total_kv_rows * p.k_row_stride, p.kv_dtype);
  v_ = allocate(p.total_kv_rows * p.v_row_stride, p.kv_dtype);
  scatter(keys_, p.head_dim, p.k_page_stride, p.k_row_stride, k_);
  scatter(values_, p.head_dim_v, p.v_page_stride, p.v_row_stride, v_);

  if (spec_.sinks) {
    sinks_ = random_values(rng, p.num_heads, DType::kF32, 2.0f);
    p.sinks = sinks_.data();
  }
  if (spec_.descales) {
    q_descale_ = random_scales(rng, p.batch * p.num_heads_kv);
    k_descale_ = random_scales(rng, p.batch * p.num_heads_kv);
    v_descale_ = random_scales(rng, p.batch * p.num_heads_kv);
    p.q_descale = q_descale_.data();
    p.k_descale = k_descale_.data();
    p.v_descale = v_descale_.data();
  }

  out_ = allocate(p.total_q * p.out_row_stride, p.out_dtype);
  lse_ = allocate(int64_t{p.num_heads} * p.total_q, DType::kF32);
  clear_output();
  p.q = q_.data();
  p.k = k_.data();
  p.v = v_.data();
  p.out = out_.data();
  p.softmax_lse = lse_.as<float>();
}

void AttentionProblem::clear_output() {
  fill_nan(out_, spec_.out_dtype);
  fill_nan(lse_, DType::kF32);
}

AttentionResult AttentionProblem::result() const {
  AttentionResult result{.num_heads = spec_.num_heads, .head_dim_v = spec_.head_dim_v, .out = {}, .lse = {}};
  for (int64_t row = 0; row < params_.total_q; ++row) {
    for (int64_t i = 0; i < int64_t{spec_.num_heads} * spec_.head_dim_v; ++i) {
      result.out.push_back(load_float(out_.data(), spec_.out_dtype, row * params_.out_row_stride + i));
    }
  }
  result.lse.assign(lse_.as<float>(), lse_.as<float>() + int64_t{spec_.num_heads} * params_.total_q);
  return result;
}

bool AttentionProblem::padding_intact() const {
  for (int64_t row = 0; row < params_.total_q; ++row) {
    for (int64_t i = params_.out_row_stride - spec_.padding; i < params_.out_row_stride; ++i) {
      if (!std::isnan(load_float(out_.data(), spec_.out_dtype, row * params_.out_row_stride + i))) return false;
    }
  }
  return true;
}

AttentionResult AttentionProblem::run_reference(const Stream& stream) const {
  AttentionResult result{.num_heads = spec_.num_heads, .head_dim_v = spec_.head_dim_v, .out = {}, .lse = {}};
  result.out.resize(int64_t{params_.total_q} * spec_.num_heads * spec_.head_dim_v);
  result.lse.resize(int64_t{params_.total_q} * spec_.num_heads);
  AttentionParams p = params_;
  p.out = p.total_q > 0 ? static_cast<void*>(result.out.data()) : params_.out;
  p.out_dtype = DType::kF32;
  p.out_row_stride = int64_t{spec_.num_heads} * spec_.head_dim_v;
  p.softmax_lse = result.lse.data();
  reference_attention(p, stream);
  return result;
}

AttentionProblem::Memory AttentionProblem::memory() const {
  const auto bytes = [](const auto& values) { return std::as_bytes(std::span(values)); };
  const auto all = [](const Buffer& buffer) { return std::span<const std::byte>(buffer.data(), buffer.size()); };
  Memory m{.q = all(q_), .k = all(k_), .v = all(v_), .out = all(out_), .softmax_lse = all(lse_)};
  m.cu_seqlens_q = bytes(cu_seqlens_q_);
  m.cache_seqlens = bytes(cache_seqlens_);
  if (params_.cu_seqlens_k != nullptr) m.cu_seqlens_k = bytes(cu_seqlens_k_);
  m.page_table = bytes(page_table_);
  m.sinks = bytes(sinks_);
  m.q_descale = bytes(q_descale_);
  m.k_descale = bytes(k_descale_);
  m.v_descale = bytes(v_descale_);
  return m;
}

float AttentionProblem::query(int request, int i, int head, int d) const {
  return queries_[((int64_t{cu_seqlens_q_[request]} + i) * spec_.num_heads + head) * spec_.head_dim + d];
}

float AttentionProblem::key(int request, int j, int head_kv, int d) const {
  return keys_[((first_key_row_[request] + j) * spec_.num_heads_kv + head_kv) * spec_.head_dim + d];
}

float AttentionProblem::value(int request, int j, int head_kv, int d) const {
  return values_[((first_key_row_[request] + j) * spec_.num_heads_kv + head_kv) * spec_.head_dim_v + d];
}

}  // namespace onepass
