// The one-pass step for one tile of keys and many rows, and the table of both ways (flash_direct.inl: few rows), for
// the instruction set that the including file names by ONEPASS_ISA.
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
#include "attention/cpu/flash_direct.inl"
#include "attention/cpu/flash_math.inl"
#include "attention/cpu/flash_stream.inl"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

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
  FlashKernels kernels{
      .max_keys = kMaxKeys, .q_is_bf16 = Math::kBf16, .absorb = absorb<Math>, .scratch_bytes = Scratch<Math>::bytes};
#if defined(__AVX512BF16__)
  if (Math::kBf16) kernels.stream = absorb_stream;
#endif
  return kernels;
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
