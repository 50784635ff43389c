#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/activation.h"
#include "kernels/cpu/isa_dispatch.h"
#include "kernels/embedding.h"
#include "kernels/kv_store.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace onepass {
namespace {

// Rows that are worth a fork of their own: about 16,000 elements take longer than waking a thread (some microseconds).
int64_t grain_of(int64_t elements_per_row) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_row));
}

}  // namespace

void run_rms_norm(const RmsNormParams& p, const Stream& stream) {
  const cpu::RowKernels& kernels = cpu::row_kernels(stream.isa);
  stream.pool->parallel_for(p.num_groups * p.rows, grain_of(p.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / p.rows, row = i % p.rows;
      kernels.rms_norm(p.x + group * p.x_group_stride + row * p.x_row_stride, p.weight, p.eps, p.cols,
                       p.out + group * p.out_group_stride + row * p.out_row_stride);
    }
  });
}

void run_silu_and_mul(const SiluAndMulParams& p, const Stream& stream) {
  const cpu::RowKernels& kernels = cpu::row_kernels(stream.isa);
  stream.pool->parallel_for(p.rows, grain_of(p.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const gate = p.gate_up + row * p.gate_up_row_stride;
      kernels.silu_and_mul(gate, gate + p.cols, p.cols, p.out + row * p.out_row_stride);
    }
  });
}

void run_rope(const RopeParams& p, const Stream& stream) {
  ONEPASS_CHECK_LE(p.rotary_dim, p.head_dim);
  const cpu::RowKernels& kernels = cpu::row_kernels(stream.isa);
  const int64_t half = p.rotary_dim / 2;
  stream.pool->parallel_for(p.num_tokens, grain_of(p.num_heads * p.head_dim), [&](int64_t begin, int64_t end, int) {
    std::vector<float> cos(half), sin(half);
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = p.positions[token] * p.inv_freq[i];
        cos[i] = static_cast<float>(std::cos(angle)) * p.attention_factor;
        sin[i] = static_cast<float>(std::sin(angle)) * p.attention_factor;
      }
      for (int64_t head = 0; head < p.num_heads; ++head) {
        kernels.rotate(p.x + token * p.row_stride + head * p.head_dim, cos.data(), sin.data(), half);
      }
    }
  });
}

void run_embedding(const EmbeddingParams& p, const Stream& stream) {
  stream.pool->parallel_for(p.num_tokens, grain_of(p.table->cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      p.table->read_row(p.ids[token], p.out + token * p.out_row_stride);
    }
  });
}

void run_kv_store(const KvStoreParams& p, const Stream& stream) {
  const cpu::RowKernels& kernels = cpu::row_kernels(stream.isa);
  const auto store = [&](const float* row, int64_t count, void* pool, int64_t slot) {
    char* const destination = static_cast<char*>(pool) + slot * count * static_cast<int64_t>(size_of(p.dtype));
    switch (p.dtype) {
      case DType::kF32:
        std::copy_n(row, count, reinterpret_cast<float*>(destination));
        return;
      case DType::kF16:
        return kernels.to_f16(row, count, reinterpret_cast<uint16_t*>(destination));
      case DType::kBF16:
        return kernels.to_bf16(row, count, reinterpret_cast<uint16_t*>(destination));
      default:
        check_failed(__FILE__, __LINE__, "kv_store of a dtype that is not fp32, fp16 or bf16");
    }
  };
  const int64_t k_count = int64_t{p.num_kv_heads} * p.head_dim, v_count = int64_t{p.num_kv_heads} * p.head_dim_v;
  stream.pool->parallel_for(p.num_tokens, grain_of(k_count + v_count), [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      store(p.k + token * p.k_row_stride, k_count, p.k_pool, p.slots[token]);
      store(p.v + token * p.v_row_stride, v_count, p.v_pool, p.slots[token]);
    }
  });
}

}  // namespace onepass
