// What the two ways through a tile of keys share, for the instruction set that the including file names by ONEPASS_ISA:
// how K, V and weights of each dtype meet, and the softmax of one row.
#pragma once

#include "attention/cpu/flash_tile.h"
#include "base/simd.inl"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

using namespace onepass::ONEPASS_ISA;  // NOLINT: the vectors of this instruction set

#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int kTileVecs = 4;
#else
constexpr int kTileRows = 4;
constexpr int kTileVecs = 2;
#endif

constexpr int kMaxKeys = 128;

constexpr float kNegativeInfinity = -__builtin_inff();

inline const void* row_at(const void* const* rows, int key, int64_t offset) {
  return static_cast<const char*>(rows[key]) + offset;
}

// K and V as float32, whatever they are stored as.
template <typename Element, Vec (*kLoad)(const void*)>
struct Float32Math {
  using Stored = Element;
  static constexpr bool kBf16 = false;
  static constexpr int kUnit = 1;  // elements of head_dim (for Q K) or keys (for P V) that one multiplication takes
  using Operand = Vec;
  using Broadcast = Vec;
  static Operand load(const uint32_t* p) { return vec_load(reinterpret_cast<const float*>(p)); }
  static Broadcast broadcast(const uint32_t* p) { return vec_set(*reinterpret_cast<const float*>(p)); }
  static Vec multiply_add(Operand a, Broadcast b, Vec sum) { return vec_fma(a, b, sum); }

  // Rows of K and V as they lie, a vector of elements at a time.
  using RowVec = Vec;
  static constexpr int kRowStep = Vec::kLanes;
  static RowVec load_row(const void* row, int element, int) { return kLoad(static_cast<const Stored*>(row) + element); }
  static RowVec load_query(const void* row, int element, int) {
    return vec_load(static_cast<const float*>(row) + element);
  }
  static Vec multiply_rows(RowVec a, RowVec b, Vec sum) { return vec_fma(a, b, sum); }
  // Elements column .. column + kVecs * kLanes of the V rows of one step.
  template <int kVecs>
  static void load_values(const void* const* v, int64_t offset, int key, int, int column, Operand (&values)[kVecs]) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i)
      values[i] = kLoad(static_cast<const Stored*>(row_at(v, key, offset)) + column + i * Vec::kLanes);
  }
  // The order in which the sums of load_values' columns lie in registers, and back: here their own.
  template <int kVecs>
  static void to_value_order(Vec (&)[kVecs]) {}
  template <int kVecs>
  static void from_value_order(Vec (&)[kVecs]) {}

  static void widen(const void* from, int count, float* to) {
    const Stored* stored = static_cast<const Stored*>(from);
    for (int i = 0; i < count; i += Vec::kLanes) vec_store(to + i, kLoad(stored + i));
  }
};

inline Vec load_f32(const void* p) { return vec_load(static_cast<const float*>(p)); }

#if defined(__AVX512BF16__)
struct Bf16Math {
  using Stored = uint16_t;
  static constexpr bool kBf16 = true;
  static constexpr int kUnit = 2;
  using Operand = __m512i;
  using Broadcast = __m512i;
  static Operand load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static Broadcast broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Vec multiply_add(Operand a, Broadcast b, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }

  using RowVec = __m512i;
  static constexpr int kRowStep = 32;
  static RowVec load_row(const void* row, int element, int end) {
    const uint16_t* const p = static_cast<const uint16_t*>(row) + element;
    return element + 32 <= end ? _mm512_loadu_si512(p)
                               : _mm512_maskz_loadu_epi16(0xffff, p);  // head_dim is a multiple of 16
  }
  static RowVec load_query(const void* row, int element, int end) { return load_row(row, element, end); }
  static Vec multiply_rows(RowVec a, RowVec b, Vec sum) { return multiply_add(a, b, sum); }
  // Two keys' values in pairs; past the last key the last one again, whose weight is 0. Two vectors at a time are
  // paired within 128-bit lanes, half the instructions of pairing each in its own order; the sums are put right in the
  // end.
  template <int kVecs>
  static void load_values(const void* const* v, int64_t offset, int key, int count, int column,
                          Operand (&values)[kVecs]) {
    const uint16_t* const a = static_cast<const uint16_t*>(row_at(v, key, offset)) + column;
    const uint16_t* const b = static_cast<const uint16_t*>(row_at(v, key + 1 < count ? key + 1 : key, offset)) + column;
    if constexpr (kVecs % 2 == 0) {
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; i += 2) {
        const __m512i x = _mm512_loadu_si512(a + 16 * i), y = _mm512_loadu_si512(b + 16 * i);
        values[i] = _mm512_unpacklo_epi16(x, y);
        values[i + 1] = _mm512_unpackhi_epi16(x, y);
      }
    } else {
      static_assert(kVecs == 1);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
      values[0] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
  }
  template <int kVecs>
  static void to_value_order(Vec (&sums)[kVecs]) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const __m512i high = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    permute_pairs(sums, low, high);
  }
  template <int kVecs>
  static void from_value_order(Vec (&sums)[kVecs]) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    permute_pairs(sums, low, high);
  }
  template <int kVecs>
  static void permute_pairs(Vec (&sums)[kVecs], __m512i low, __m512i high) {
#pragma GCC unroll 8
    for (int i = 0; i + 1 < kVecs; i += 2) {
      const __m512 x = sums[i].v, y = sums[i + 1].v;
      sums[i].v = _mm512_permutex2var_ps(x, low, y);
      sums[i + 1].v = _mm512_permutex2var_ps(x, high, y);
    }
  }
};
#endif

// tanh(x) = 1 - 2 / (e^2x + 1), in the range where float32 tells it from 1.
inline Vec vec_tanh(Vec x) {
  const Vec limit = vec_set(15.0f);
  const Vec clamped =
      vec_sub(vec_zero(), vec_max(vec_sub(vec_zero(), vec_max(x, vec_set(-15.0f))), vec_sub(vec_zero(), limit)));
  const Vec e = vec_exp2(vec_mul(clamped, vec_set(2.0f * 1.44269504f)));
  return vec_sub(vec_set(1.0f), vec_div(vec_set(2.0f), vec_add(e, vec_set(1.0f))));
}

// Scores of one row to weights (in place; as bf16 pairs where the product takes them): scale, cap, mask, online
// softmax. Returns what O is multiplied by.
template <typename Math>
inline float softmax_row(const FlashKeys& keys, int padded, int first, int last, float* scores, float& max,
                         float& sum) {
  const Vec scale = vec_set(keys.scale), none = vec_set(kNegativeInfinity);
  Vec largest = none;
  for (int key = 0; key < padded; key += Vec::kLanes) {
    Vec score = vec_mul(vec_load(scores + key), scale);
    if (keys.softcap > 0.0f) score = vec_mul(vec_tanh(score), vec_set(keys.softcap));
    if (first > key || last < key + Vec::kLanes - 1) score = vec_select_lanes(score, first - key, last - key, none);
    vec_store(scores + key, score);
    largest = vec_max(largest, score);
  }
  const float tile_max = vec_reduce_max(largest);
  const float new_max = tile_max > max ? tile_max : max;
  // Nothing seen yet: every weight is 0, and exp(-inf - -inf) must not be asked for.
  const Vec shift = vec_set(new_max == kNegativeInfinity ? 0.0f : new_max);
  Vec total = vec_zero();
  for (int key = 0; key < padded; key += Vec::kLanes) {
    const Vec weight = vec_exp2(vec_sub(vec_load(scores + key), shift));
    total = vec_add(total, weight);
#if defined(__AVX512BF16__)
    if constexpr (Math::kBf16) {
      // In place: the sixteen weights, half as wide, take the first half of what is already read.
      const __m256bh rounded = _mm512_cvtneps_pbh(weight.v);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(scores) + key),
                          reinterpret_cast<const __m256i&>(rounded));
      continue;
    }
#endif
    vec_store(scores + key, weight);
  }
  float rescale = 1.0f;
  if (max != new_max) {
    float lanes[Vec::kLanes];
    vec_store(lanes, vec_exp2(vec_set(max - new_max)));
    rescale = lanes[0];
  }
  sum = sum * rescale + vec_reduce_add(total);
  max = new_max;
  return rescale;
}

}  // namespace
}  // namespace onepass::cpu::ONEPASS_ISA
