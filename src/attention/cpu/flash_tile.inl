// The one-pass step for one tile of keys, for the instruction set that the including file names by ONEPASS_ISA.
//
//            K tile, transposed                    V tile
//         [head_dim][keys] in scratch         [keys][head_dim_v] in scratch
//                  |                                  |
//   6 rows of Q ---+--> scores [6][keys] --> weights -+--> O [6][head_dim_v]
//                       online softmax: max, sum, O rescaled by 2^(old max - new max)
//
// K and V are brought into scratch once and serve all rows of the tile. In bf16 both lie in pairs (two elements of
// head_dim, two keys), the operands of bf16 dot products; otherwise as float32. A register tile is kTileRows rows by
// kTileVecs vectors.
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

// Rows by keys of a register tile where K and V are read where they lie; a dot product runs in the lanes of one vector.
#if defined(__AVX512F__)
constexpr int kDirectRows = 6;
#elif defined(__AVX2__)
constexpr int kDirectRows = 3;
#else
constexpr int kDirectRows = 2;
#endif
constexpr int kDirectKeys = 4;
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

// out[word][key] = rows[key][word] for words of four bytes: four rows by four words at a time. `count` is a multiple
// of 4.
inline void transpose_words(const uint32_t* const* rows, int count, int words, uint32_t* out) {
  for (int key = 0; key < count; key += 4) {
    for (int word = 0; word < words; word += 4) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[key] + word));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[key + 1] + word));
      const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[key + 2] + word));
      const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[key + 3] + word));
      const __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
      const __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
      uint32_t* const to = out + word * kMaxKeys + key;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(ab_low, cd_low));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kMaxKeys), _mm_unpackhi_epi64(ab_low, cd_low));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * kMaxKeys), _mm_unpacklo_epi64(ab_high, cd_high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * kMaxKeys), _mm_unpackhi_epi64(ab_high, cd_high));
    }
  }
}

// The tile's K and V in scratch, and how they are found there.
template <typename Math>
struct Scratch {
  uint32_t* k;       // [head_dim / kUnit][kMaxKeys] words
  uint32_t* v;       // [kMaxKeys / kUnit][head_dim_v] words
  uint32_t* staged;  // [kMaxKeys][head_dim]: K rows as float32, before they are transposed

  Scratch(void* memory, int head_dim, int head_dim_v) {
    k = static_cast<uint32_t*>(memory);
    v = k + int64_t{kMaxKeys} * head_dim / Math::kUnit;
    staged = v + int64_t{kMaxKeys} * head_dim_v / Math::kUnit;
  }
  static int64_t bytes(int head_dim, int head_dim_v) {
    const int64_t packed = int64_t{kMaxKeys} * (head_dim + head_dim_v) / Math::kUnit;
    return 4 * (packed + (Math::kBf16 ? 0 : int64_t{kMaxKeys} * head_dim));
  }
};

// Rows of keys up to `count`, rounded up to whole vectors by repeating the last: their scores are masked, and their
// weights zero.
template <typename Math>
void bring_in(const FlashRows& rows, const FlashKeys& keys, int padded, const Scratch<Math>& scratch) {
  const uint32_t* k_rows[kMaxKeys];
  for (int key = 0; key < padded; ++key) {
    const void* const row = row_at(keys.k, key < keys.count ? key : keys.count - 1, keys.k_offset);
    if constexpr (Math::kBf16) {
      k_rows[key] = static_cast<const uint32_t*>(row);
    } else {
      float* const staged = reinterpret_cast<float*>(scratch.staged) + int64_t{key} * rows.head_dim;
      if (key < keys.count) Math::widen(row, rows.head_dim, staged);
      k_rows[key] = key < keys.count ? reinterpret_cast<const uint32_t*>(staged) : k_rows[keys.count - 1];
    }
  }
  transpose_words(k_rows, padded, rows.head_dim / Math::kUnit, scratch.k);
  for (int key = 0; key < padded; key += Math::kUnit) {
    const void* const row = row_at(keys.v, key < keys.count ? key : keys.count - 1, keys.v_offset);
#if defined(__AVX512BF16__)
    if constexpr (Math::kBf16) {
      const uint16_t* const a = static_cast<const uint16_t*>(row);
      const uint16_t* const b =
          static_cast<const uint16_t*>(row_at(keys.v, key + 1 < keys.count ? key + 1 : keys.count - 1, keys.v_offset));
      uint32_t* const to = scratch.v + int64_t{key / 2} * rows.head_dim_v;
      for (int i = 0; i < rows.head_dim_v; i += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
        _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
      continue;
    }
#endif
    if constexpr (!Math::kBf16) {
      Math::widen(row, rows.head_dim_v, reinterpret_cast<float*>(scratch.v) + int64_t{key} * rows.head_dim_v);
    }
  }
}

// One register tile of a product: sums[r][v] += a[r][step] * b[step][v], b rows `b_stride` words apart.
template <typename Math, int kRows, int kVecs>
__attribute__((always_inline)) inline void multiply(const uint32_t* const (&a)[kRows], const uint32_t* b,
                                                    int64_t b_stride, int steps, Vec (&sums)[kRows][kVecs]) {
  for (int step = 0; step < steps; ++step) {
    typename Math::Operand operand[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) operand[v] = Math::load(b + v * Vec::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Math::Broadcast broadcast = Math::broadcast(a[r] + step);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = Math::multiply_add(operand[v], broadcast, sums[r][v]);
    }
    b += b_stride;
  }
}

// scores[r][key .. key + kVecs vectors) = q[r] . k
template <typename Math, int kRows, int kVecs>
inline void score_columns(const uint32_t* const (&q)[kRows], int words, const uint32_t* k, int key,
                          float (*scores)[kMaxKeys]) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sums[r][v] = vec_zero();
  }
  multiply<Math, kRows, kVecs>(q, k + key, kMaxKeys, words, sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) vec_store(scores[r] + key + v * Vec::kLanes, sums[r][v]);
  }
}

// o[r][column .. column + kVecs vectors) = o * rescale[r] + weights[r] . v
template <typename Math, int kRows, int kVecs>
inline void output_columns(const uint32_t* const (&weights)[kRows], int steps, const uint32_t* v_tile, int head_dim_v,
                           int column, const float* rescale, float* o) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Vec factor = vec_set(rescale[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      sums[r][v] = vec_mul(vec_load(o + int64_t{r} * head_dim_v + column + v * Vec::kLanes), factor);
  }
  multiply<Math, kRows, kVecs>(weights, v_tile + column, head_dim_v, steps, sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) vec_store(o + int64_t{r} * head_dim_v + column + v * Vec::kLanes, sums[r][v]);
  }
}

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

template <typename Math, int kRows>
void absorb_rows(const FlashRows& rows, const FlashKeys& keys, int row, const Scratch<Math>& scratch) {
  alignas(64) float scores[kRows][kMaxKeys];
  const uint32_t* q[kRows];
  const uint32_t* weights[kRows];
  float rescale[kRows];
  // Keys that none of these rows sees are not multiplied (the diagonal of causal attention).
  int first = kMaxKeys, last = -1;
  for (int r = 0; r < kRows; ++r) {
    const int f = keys.first[row + r] > 0 ? keys.first[row + r] : 0,
              l = keys.last[row + r] < keys.count - 1 ? keys.last[row + r] : keys.count - 1;
    if (f <= l) {
      first = f < first ? f : first;
      last = l > last ? l : last;
    }
    q[r] = static_cast<const uint32_t*>(rows.q) + int64_t{row + r} * rows.head_dim / Math::kUnit;
    weights[r] = reinterpret_cast<const uint32_t*>(scores[r]);
  }
  if (last < 0) return;
  const int padded = (last + Vec::kLanes) / Vec::kLanes * Vec::kLanes;
  const int words = rows.head_dim / Math::kUnit;
  int key = 0;
  for (; key + kTileVecs * Vec::kLanes <= padded; key += kTileVecs * Vec::kLanes) {
    score_columns<Math, kRows, kTileVecs>(q, words, scratch.k, key, scores);
  }
  for (; key < padded; key += Vec::kLanes) score_columns<Math, kRows, 1>(q, words, scratch.k, key, scores);

  for (int r = 0; r < kRows; ++r) {
    const int row_last = keys.last[row + r] < keys.count - 1 ? keys.last[row + r] : keys.count - 1;
    rescale[r] =
        softmax_row<Math>(keys, padded, keys.first[row + r], row_last, scores[r], rows.max[row + r], rows.sum[row + r]);
  }

  float* const o = rows.o + int64_t{row} * rows.head_dim_v;
  const int steps = (last + Math::kUnit) / Math::kUnit;
  int column = 0;
  for (; column + kTileVecs * Vec::kLanes <= rows.head_dim_v; column += kTileVecs * Vec::kLanes) {
    output_columns<Math, kRows, kTileVecs>(weights, steps, scratch.v, rows.head_dim_v, column, rescale, o);
  }
  for (; column < rows.head_dim_v; column += Vec::kLanes) {
    output_columns<Math, kRows, 1>(weights, steps, scratch.v, rows.head_dim_v, column, rescale, o);
  }
}

// --- few rows: K and V where they lie

inline void ask(FlashAhead::Cursor& cursor, const FlashAhead::Run* end, int lines) {
  while (lines > 0 && cursor.run != end) {
    const int left = cursor.run->lines - cursor.line, count = lines < left ? lines : left;
    const char* const p = cursor.run->begin + int64_t{cursor.line} * 64;
    for (int line = 0; line < count; ++line) __builtin_prefetch(p + line * 64);
    lines -= count;
    cursor.line += count;
    if (count == left) cursor = {cursor.run + 1, 0};
  }
}

// Asks for the next `lines` cache lines of `ahead`. Each line is asked for three times, 128 and 32 lines before its
// turn and in turn: a processor whose queue is full drops requests (Zen 5: a loop of requests alone "runs" at four
// times the memory's speed), and asking again costs one instruction. Of the bandwidth of a plain read, a token of 32
// query and 8 KV heads reached: asked once 0.72, with a real load in place of the last request 0.85, three times 0.87.
inline void ask_ahead(FlashAhead& ahead, int lines) {
  if (lines == 0) return;
  if (!ahead.started) {
    ahead.started = true;
    ask(ahead.cursors[0], ahead.end, 128);
    ask(ahead.cursors[1], ahead.end, 32);
  }
  for (FlashAhead::Cursor& cursor : ahead.cursors) ask(cursor, ahead.end, lines);
}

// scores[r][key] for all keys of the tile, four keys at a time.
template <typename Math, int kRows>
inline void direct_scores(const FlashRows& rows, const FlashKeys& keys, int row, float (*scores)[kMaxKeys],
                          int lines_each) {
  const int64_t q_bytes = int64_t{rows.head_dim} * (Math::kBf16 ? 2 : 4);
  const char* const q = static_cast<const char*>(rows.q) + row * q_bytes;
  for (int key = 0; key < keys.count; key += kDirectKeys) {
    const void* k[kDirectKeys];
    for (int j = 0; j < kDirectKeys; ++j) {
      const int at = key + j < keys.count ? key + j : keys.count - 1;
      k[j] = row_at(keys.k, at, keys.k_offset);
    }
    ask_ahead(*keys.ahead, lines_each);
    Vec sums[kRows][kDirectKeys];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < kDirectKeys; ++j) sums[r][j] = vec_zero();
    }
    for (int element = 0; element < rows.head_dim; element += Math::kRowStep) {
      typename Math::RowVec key_vec[kDirectKeys];
#pragma GCC unroll 8
      for (int j = 0; j < kDirectKeys; ++j) key_vec[j] = Math::load_row(k[j], element, rows.head_dim);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const typename Math::RowVec query = Math::load_query(q + r * q_bytes, element, rows.head_dim);
#pragma GCC unroll 8
        for (int j = 0; j < kDirectKeys; ++j) sums[r][j] = Math::multiply_rows(key_vec[j], query, sums[r][j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      _mm_storeu_ps(scores[r] + key, vec_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
  }
}

// o[r][column .. column + kVecs vectors) = o * rescale[r] + weights[r] . v
template <typename Math, int kRows, int kVecs>
inline void direct_output(const FlashRows& rows, const FlashKeys& keys, int row, int column,
                          const float (*scores)[kMaxKeys], const float* rescale, int lines_each) {
  float* const o = rows.o + int64_t{row} * rows.head_dim_v + column;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Vec factor = vec_set(rescale[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      sums[r][v] = vec_mul(vec_load(o + int64_t{r} * rows.head_dim_v + v * Vec::kLanes), factor);
    Math::to_value_order(sums[r]);
  }
  for (int key = 0; key < keys.count; key += Math::kUnit) {
    ask_ahead(*keys.ahead, lines_each);
    typename Math::Operand values[kVecs];
    Math::load_values(keys.v, keys.v_offset, key, keys.count, column, values);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Math::Broadcast weight =
          Math::broadcast(reinterpret_cast<const uint32_t*>(scores[r]) + key / Math::kUnit);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = Math::multiply_add(values[v], weight, sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    Math::from_value_order(sums[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) vec_store(o + int64_t{r} * rows.head_dim_v + v * Vec::kLanes, sums[r][v]);
  }
}

template <typename Math, int kRows>
void absorb_direct(const FlashRows& rows, const FlashKeys& keys, int row) {
  alignas(64) float scores[kRows][kMaxKeys];
  float rescale[kRows];
  // The first rows of the tile ask for what comes next, at a pace that follows the work: half of it beside the scores
  // and the softmax, half beside the output.
  const int lines = row == 0 ? keys.ahead_lines : 0;
  const int passes = (rows.head_dim_v / Vec::kLanes + kTileVecs - 1) / kTileVecs;
  const int score_steps = (keys.count + kDirectKeys - 1) / kDirectKeys;
  const int output_steps = passes * ((keys.count + Math::kUnit - 1) / Math::kUnit);
  const int score_lines = (lines * 7 / 16 + score_steps - 1) / score_steps;
  const int output_lines = (lines / 2 + output_steps - 1) / output_steps;
  direct_scores<Math, kRows>(rows, keys, row, scores, score_lines);
  ask_ahead(*keys.ahead, lines / 16);
  const int padded = (keys.count + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  for (int r = 0; r < kRows; ++r) {
    const int last = keys.last[row + r] < keys.count - 1 ? keys.last[row + r] : keys.count - 1;
    rescale[r] =
        softmax_row<Math>(keys, padded, keys.first[row + r], last, scores[r], rows.max[row + r], rows.sum[row + r]);
  }
  int column = 0;
  for (; column + kTileVecs * Vec::kLanes <= rows.head_dim_v; column += kTileVecs * Vec::kLanes) {
    direct_output<Math, kRows, kTileVecs>(rows, keys, row, column, scores, rescale, output_lines);
  }
  for (; column < rows.head_dim_v; column += Vec::kLanes) {
    direct_output<Math, kRows, 1>(rows, keys, row, column, scores, rescale, output_lines);
  }
}

template <typename Math>
void absorb_few(const FlashRows& rows, const FlashKeys& keys) {
  int row = 0;
  for (; row + kDirectRows <= rows.rows; row += kDirectRows) absorb_direct<Math, kDirectRows>(rows, keys, row);
  switch (rows.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return absorb_direct<Math, 5>(rows, keys, row);
    case 4:
      return absorb_direct<Math, 4>(rows, keys, row);
    case 3:
      return absorb_direct<Math, 3>(rows, keys, row);
#endif
#if defined(__AVX2__)
    case 2:
      return absorb_direct<Math, 2>(rows, keys, row);
#endif
    case 1:
      return absorb_direct<Math, 1>(rows, keys, row);
    default:
      return;
  }
}

// --- any rows

template <typename Math>
void absorb(const FlashRows& rows, const FlashKeys& keys) {
  if (rows.direct) return absorb_few<Math>(rows, keys);
  const Scratch<Math> scratch(keys.scratch, rows.head_dim, rows.head_dim_v);
  ask_ahead(*keys.ahead, keys.ahead_lines);
  constexpr int kWhole = Vec::kLanes > 4 ? Vec::kLanes : 4;
  bring_in<Math>(rows, keys, (keys.count + kWhole - 1) / kWhole * kWhole, scratch);
  int row = 0;
  for (; row + kTileRows <= rows.rows; row += kTileRows) absorb_rows<Math, kTileRows>(rows, keys, row, scratch);
  switch (rows.rows - row) {
#if defined(__AVX512F__)
    case 5:
      return absorb_rows<Math, 5>(rows, keys, row, scratch);
    case 4:
      return absorb_rows<Math, 4>(rows, keys, row, scratch);
#endif
    case 3:
      return absorb_rows<Math, 3>(rows, keys, row, scratch);
    case 2:
      return absorb_rows<Math, 2>(rows, keys, row, scratch);
    case 1:
      return absorb_rows<Math, 1>(rows, keys, row, scratch);
    default:
      return;
  }
}

template <typename Math>
constexpr FlashKernels kernels_of() {
  return {
      .max_keys = kMaxKeys, .q_is_bf16 = Math::kBf16, .absorb = absorb<Math>, .scratch_bytes = Scratch<Math>::bytes};
}

}  // namespace

extern const FlashKernelTable kFlashKernels;
const FlashKernelTable kFlashKernels = {
    .f32 = kernels_of<Float32Math<float, load_f32>>(),
    .f16 = kernels_of<Float32Math<uint16_t, vec_load_f16>>(),
#if defined(__AVX512BF16__)
    .bf16 = kernels_of<Bf16Math>(),
#else
    .bf16 = kernels_of<Float32Math<uint16_t, vec_load_bf16>>(),
#endif
};

}  // namespace onepass::cpu::ONEPASS_ISA
