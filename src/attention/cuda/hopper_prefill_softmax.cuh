// The softmax of one warpgroup of the Hopper prefill kernel: the running maximum and denominator of 64 queries.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "tensor/cuda/hopper_ptx.cuh"

namespace onepass::hopper {

// A thread holds, of each 8 keys j, the scores s[4 j], s[4 j + 1] of its row 0 and s[4 j + 2], s[4 j + 3] of its row 1;
// the four threads of a quad share the two rows. Probabilities go, rounded and packed, to p: accumulators of 16 keys
// lie as the operand of a product with 16 rows of V must.
template <typename T, int kKeys>
class PrefillSoftmax {
 public:
  static constexpr int kScores = kKeys / 2;
  // The maximum that is subtracted may lag behind the true one: without a look as long as no thread's sum of a block
  // exceeds 2^10, and by a factor of 2^8 where it is looked at. Neither float32 sums nor probabilities of that size
  // mind, and the denominator is scaled alike: the result is exact all the same. So O is hardly ever rescaled, and most
  // blocks need no maximum, no shuffles, and no chain of dependent instructions. Each row decides by its own scores
  // alone, so that its bits do not depend on the rows beside it.
  static constexpr float kLag = 8.0f;
  static constexpr float kSumLimit = 1024.0f;

  __device__ explicit PrefillSoftmax(float scale) : scale_(scale) {}

  __device__ void reset() {
    max_[0] = max_[1] = -INFINITY;
    sum_[0] = sum_[1] = 0.0f;
    fits_[0] = fits_[1] = false;
  }

  // The soft cap: scores to tanh(x) = 1 - 2 / (e^(2 x) + 1), where s * scale is the exponent of two of e^(2 x). Exact
  // to float32; tanh.approx would cost 11 bits. Beyond 2^30 it is 1; so four scores, of one row, can share a
  // reciprocal.
  __device__ static void cap(float (&s)[kScores], float scale) {
#pragma unroll
    for (int i = 0; i < kScores; i += i % 8 == 0 ? 2 : 6) {
      const int at[4] = {i, i + 1, i + 4, i + 5};
      float a[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = exp2_approx(fminf(s[at[j]] * scale, 30.0f)) + 1.0f;
      const float first = a[0] * a[1];
      const float second = a[2] * a[3];
      const float inverse = __fdividef(-2.0f, first * second);
      const float of_first = inverse * second;
      const float of_second = inverse * first;
      s[at[0]] = fmaf(of_first, a[1], 1.0f);
      s[at[1]] = fmaf(of_first, a[0], 1.0f);
      s[at[2]] = fmaf(of_second, a[3], 1.0f);
      s[at[3]] = fmaf(of_second, a[2], 1.0f);
    }
  }

  // Scores to probabilities by the maxima so far, if these will do for the whole warp or have been `raised` for these
  // scores; otherwise false for all of its threads.
  __device__ bool try_exponentials(const float (&s)[kScores], uint32_t (&p)[kKeys / 4], bool raised) {
    float sum[2];
    exponentials(s, p, sum);
    fits_[0] = sum[0] <= kSumLimit && max_[0] != -INFINITY;
    fits_[1] = sum[1] <= kSumLimit && max_[1] != -INFINITY;
    if (__any_sync(0xFFFFFFFF, !(raised || (fits_[0] && fits_[1])))) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        fits_[row] = (__ballot_sync(0xFFFFFFFF, !fits_[row]) >> (threadIdx.x % 32 & ~3u) & 0xF) == 0;
      }
      return false;
    }
    sum_[0] += sum[0];
    sum_[1] += sum[1];
    return true;
  }

  // Brings the maxima up to date: what went before must be multiplied by `correction`.
  __device__ void raise(const float (&s)[kScores], float (&correction)[2]) {
    float m[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
    for (int i = 4; i < kScores; ++i) m[i % 4] = fmaxf(m[i % 4], s[i]);
    float now[2] = {fmaxf(m[0], m[1]) * scale_, fmaxf(m[2], m[3]) * scale_};
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
#pragma unroll
      for (int row = 0; row < 2; ++row) now[row] = fmaxf(now[row], __shfl_xor_sync(0xFFFFFFFF, now[row], lanes));
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool seen = max_[row] != -INFINITY;
      if (fits_[row] || (seen && now[row] <= max_[row] + kLag)) now[row] = max_[row];
      correction[row] = seen ? exp2_approx(max_[row] - now[row]) : 0.0f;
      max_[row] = now[row];
      sum_[row] *= correction[row];
    }
  }

  // Adds the threads' sums up. It has no branches, so that it may stand between two products.
  __device__ void add_up() {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      sum_[row] += __shfl_xor_sync(0xFFFFFFFF, sum_[row], 1);
      sum_[row] += __shfl_xor_sync(0xFFFFFFFF, sum_[row], 2);
    }
  }
  // Then the sink: the exponent of what it adds, relative to nothing.
  __device__ void add_sink(float sink) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (sum_[row] > 0.0f) sum_[row] += exp2_approx(sink * 1.4426950408889634f - max_[row]);
    }
  }
  // After those.
  __device__ float inverse_sum(int row) const { return sum_[row] > 0.0f ? __fdividef(1.0f, sum_[row]) : 0.0f; }
  __device__ float log_sum(int row) const {
    return sum_[row] > 0.0f ? (max_[row] + __log2f(sum_[row])) * 0.69314718055994531f : -INFINITY;
  }

 private:
  __device__ float base(int row) const { return max_[row] == -INFINITY ? 0.0f : max_[row]; }

  __device__ void exponentials(const float (&s)[kScores], uint32_t (&p)[kKeys / 4], float (&sum)[2]) const {
    const float base0 = base(0);
    const float base1 = base(1);
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      const float a = exp2_approx(fmaf(s[4 * j], scale_, -base0));
      const float b = exp2_approx(fmaf(s[4 * j + 1], scale_, -base0));
      const float c = exp2_approx(fmaf(s[4 * j + 2], scale_, -base1));
      const float d = exp2_approx(fmaf(s[4 * j + 3], scale_, -base1));
      part[0] += a;
      part[1] += b;
      part[2] += c;
      part[3] += d;
      p[2 * j] = pack<T>(a, b);
      p[2 * j + 1] = pack<T>(c, d);
    }
    sum[0] = part[0] + part[1];
    sum[1] = part[2] + part[3];
  }

  const float scale_;  // of scores, to exponents of two
  float max_[2];       // of the exponents; -infinity when no key has been seen
  float sum_[2];       // this thread's part
  bool fits_[2];       // whether max_ did for the last block; of no block yet: false
};

}  // namespace onepass::hopper
