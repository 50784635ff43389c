// Attention written to be read, on the GPU: one block of threads for each query row and head, in float32. The twin that
// the fast kernels are checked against where the float64 reference would take too long, and the kernel for what no
// other takes (float32, unusual head dimensions).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/kernels.h"
#include "tensor/cuda/cuda_status.h"

namespace onepass {
namespace {

constexpr int kThreads = 128;  // keys of a step: each thread scores one
constexpr int kMaxHeadDim = 512;
constexpr int kColumns = kMaxHeadDim / kThreads;  // of the output, for each thread
constexpr int kMaxHeads = 65535;                  // gridDim.y

__device__ float to_float32(float value) { return value; }
__device__ float to_float32(__half value) { return __half2float(value); }
__device__ float to_float32(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ float load(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF16) return to_float32(static_cast<const __half*>(data)[index]);
  if (dtype == DType::kBF16) return to_float32(static_cast<const __nv_bfloat16*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

__device__ void store(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF16) {
    static_cast<__half*>(data)[index] = __float2half_rn(value);
  } else if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

// The request of a row, or `batch` when the row is behind the last one's.
__device__ int request_of(const AttentionParams& p, int row) {
  int low = 0, high = p.batch;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (p.cu_seqlens_q[middle + 1] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The keys [begin, end) that a row at `position` sees: every mask leaves one range.
struct KeyRange {
  int64_t begin, end;
};

__device__ KeyRange visible_keys(const AttentionParams& p, int64_t position, int64_t seqlen_k) {
  KeyRange range{0, seqlen_k};
  if (p.causal) range.end = min(range.end, position + 1);
  if (p.window_right >= 0) range.end = min(range.end, position + p.window_right + 1);
  if (p.window_left >= 0) range.begin = max(range.begin, position - p.window_left);
  if (p.attention_chunk > 0) {
    const int64_t chunk = p.attention_chunk;
    const int64_t first = position >= 0 ? position / chunk * chunk : -((-position + chunk - 1) / chunk) * chunk;
    range.begin = max(range.begin, first);
    range.end = min(range.end, first + chunk);
  }
  return range;
}

// Every thread gets the result; `shared` has kThreads / 32 places.
template <typename Combine>
__device__ float reduce_block(float value, float* shared, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();  // the last reduction's readers are done
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) value = combine(value, shared[warp]);
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) naive_attention_kernel(const AttentionParams p) {
  __shared__ float q[kMaxHeadDim];
  __shared__ float weights[kThreads];
  __shared__ int64_t value_rows[kThreads];
  __shared__ float shared[kThreads / 32];
  const int row = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
  const int head_kv = head / (p.num_heads / p.num_heads_kv);
  const int request = request_of(p, row);
  if (request == p.batch) return;
  const int64_t seqlen_k = p.cache_seqlens[request];
  const int64_t position = seqlen_k - (p.cu_seqlens_q[request + 1] - row);
  const KeyRange keys = visible_keys(p, position, seqlen_k);

  const int descale_at = request * p.num_heads_kv + head_kv;
  float scale = p.softmax_scale;
  if (p.q_descale != nullptr) scale *= p.q_descale[descale_at];
  if (p.k_descale != nullptr) scale *= p.k_descale[descale_at];
  for (int d = thread; d < p.head_dim; d += kThreads) {
    q[d] = load(p.q, p.q_dtype, row * p.q_row_stride + head * p.q_head_stride + d);
  }
  __syncthreads();

  const T* k = static_cast<const T*>(p.k) + head_kv * p.k_head_stride;
  const T* v = static_cast<const T*>(p.v) + head_kv * p.v_head_stride;
  const bool any = keys.begin < keys.end;
  float max = any && p.sinks != nullptr ? p.sinks[head] : -INFINITY;
  float sum = any && p.sinks != nullptr ? 1.0f : 0.0f;
  float out[kColumns] = {};
  for (int64_t first = keys.begin; first < keys.end; first += kThreads) {
    const int64_t j = first + thread;
    float score = -INFINITY;
    if (j < keys.end) {
      int64_t k_row, v_row;
      if (p.page_table != nullptr) {
        const int64_t page = p.page_table[request * p.page_table_stride + j / p.page_size];
        k_row = page * p.k_page_stride + j % p.page_size * p.k_row_stride;
        v_row = page * p.v_page_stride + j % p.page_size * p.v_row_stride;
      } else {
        k_row = (p.cu_seqlens_k[request] + j) * p.k_row_stride;
        v_row = (p.cu_seqlens_k[request] + j) * p.v_row_stride;
      }
      score = 0.0f;
      for (int d = 0; d < p.head_dim; ++d) score += q[d] * to_float32(k[k_row + d]);
      score *= scale;
      if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
      value_rows[thread] = v_row;
    }
    const float new_max = fmaxf(max, reduce_block(score, shared, [](float a, float b) { return fmaxf(a, b); }));
    const float rescale = max == -INFINITY ? 0.0f : expf(max - new_max);
    weights[thread] = score == -INFINITY ? 0.0f : expf(score - new_max);
    // The reduction's barriers also show weights and value_rows to all.
    sum = sum * rescale + reduce_block(weights[thread], shared, [](float a, float b) { return a + b; });
    max = new_max;
    const int count = static_cast<int>(min(int64_t{kThreads}, keys.end - first));
    for (int c = 0; c < kColumns; ++c) {
      const int d = c * kThreads + thread;
      if (d >= p.head_dim_v) break;
      out[c] *= rescale;
      for (int i = 0; i < count; ++i) out[c] += weights[i] * to_float32(v[value_rows[i] + d]);
    }
    __syncthreads();
  }

  float normalizer = any ? 1.0f / sum : 0.0f;
  if (p.v_descale != nullptr) normalizer *= p.v_descale[descale_at];
  for (int c = 0; c < kColumns; ++c) {
    const int d = c * kThreads + thread;
    if (d >= p.head_dim_v) break;
    store(p.out, p.out_dtype, row * p.out_row_stride + head * p.out_head_stride + d, out[c] * normalizer);
  }
  if (thread == 0 && p.softmax_lse != nullptr) {
    p.softmax_lse[int64_t{head} * p.total_q + row] = any ? max + logf(sum) : -INFINITY;
  }
}

Status supports(const AttentionParams& p, const GpuInfo& gpu) {
  ONEPASS_RETURN_IF_ERROR(validate(p));
  if (!gpu.usable) return unimplemented("naive attention: this binary has no code for ", gpu.name);
  if (p.head_dim > kMaxHeadDim || p.head_dim_v > kMaxHeadDim) {
    return unimplemented("naive attention: head_dim and head_dim_v: expected at most ", kMaxHeadDim, ", found ",
                         p.head_dim, " and ", p.head_dim_v);
  }
  if (p.num_heads > kMaxHeads) {
    return unimplemented("naive attention: num_heads: expected at most ", kMaxHeads, ", found ", p.num_heads);
  }
  return ok_status();
}

int64_t scratch_bytes(const AttentionParams&, const GpuInfo&) { return 0; }

// Never splits, so there is nothing to plan, and each row is computed alone.
Status plan(const AttentionParams&, const GpuInfo&, const CudaScratch&, CUstream_st*) { return ok_status(); }

Status run(const AttentionParams& p, const GpuInfo&, const CudaScratch&, CUstream_st* stream) {
  if (p.total_q == 0) return ok_status();
  const dim3 grid(p.total_q, p.num_heads);
  if (p.kv_dtype == DType::kF16) {
    naive_attention_kernel<__half><<<grid, kThreads, 0, stream>>>(p);
  } else if (p.kv_dtype == DType::kBF16) {
    naive_attention_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream>>>(p);
  } else {
    naive_attention_kernel<float><<<grid, kThreads, 0, stream>>>(p);
  }
  return launch_status("naive attention");
}

}  // namespace

const CudaAttentionKernel kNaiveAttention = {
    .name = "naive", .supports = supports, .scratch_bytes = scratch_bytes, .plan = plan, .run = run};

}  // namespace onepass
