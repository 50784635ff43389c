// Decoding as a stream, for bf16 dot products: a few query rows in each of several KV heads, over keys that are read
// once, in the order in which they lie in memory. A row of the pool holds all KV heads of a token, so the work goes
// token by token over all heads, and what is done with K runs beside what is done with the V of the tile before:
//
//   tile t of two tokens     token 2t: head 0, 1, ...  | token 2t+1: head 0, 1, ...  | softmax of tile t
//     scores                           q.k  q.k                      q.k  q.k        |
//     output of tile t-1               w.v  w.v                      w.v  w.v        |
//     asked for, line by line          K of tokens 2t+2 and 2t+1, V of 2t+1 and 2t   |
//
// so that memory is never left idle. What this rests on, in parts of a plain read (Zen 5, 32 query and 8 KV heads of
// 128, two cores that share 51 GB/s / that have 43 GB/s each):
//  - The order of memory: one head after the other takes 256 bytes of every 2 KiB, and reaches 0.83 / 0.62.
//  - Tiles of two tokens: V waits in the L1 cache for its weights, beside q and the sums of the output. From L2 it
//    would need the buffers in which K arrives. Two tokens reach 0.93 / 0.81, four 0.84 / 0.78, though two load and
//    store the sums twice as often. K of two tokens at once, for half the loads of q: 0.77.
//  - Every line is asked for, twice: a request is dropped when the buffers are full. Once 0.90 / 0.67, three times
//    0.91 / 0.80. Every second line, trusting the processor with the other: 0.72 / 0.47.
//  - Scores lie as [key][row]: the softmax of 16 rows is vertical, without sums or maxima across lanes.
#pragma once

#include "attention/cpu/flash_math.inl"

#if defined(__AVX512BF16__)

namespace onepass::cpu::ONEPASS_ISA {
namespace {

constexpr int kTokens = 2;       // of a tile
constexpr int kKeysAhead = 2;    // tokens between the first request for K and its use; the second is one token before
constexpr int kValuesAhead = 1;  // between the first request for V and the scores of its token, when it is asked again
constexpr int kRing = 8;         // tokens whose addresses are kept: two tiles and what is ahead

// The addresses of one token after the other, by way of the page table.
class TokenAddresses {
 public:
  explicit TokenAddresses(const FlashStream& s) : s_(s), left_(s.count) {
    page_ = s.page_table == nullptr ? 0 : s.begin / s.page_size;
    enter_page(s.page_table == nullptr ? s.begin : s.begin % s.page_size);
  }

  // Past the last token, that one again.
  void next(const char*& k, const char*& v) {
    k = k_;
    v = v_;
    if (--left_ <= 0) return;
    if (--left_in_page_ > 0) {
      k_ += s_.k_row_stride;
      v_ += s_.v_row_stride;
    } else {
      ++page_;
      enter_page(0);
    }
  }

 private:
  void enter_page(int64_t row) {
    const int64_t page = s_.page_table == nullptr ? 0 : s_.page_table[page_];
    k_ = s_.k + page * s_.k_page_stride + row * s_.k_row_stride;
    v_ = s_.v + page * s_.v_page_stride + row * s_.v_row_stride;
    left_in_page_ = s_.page_table == nullptr ? s_.count : s_.page_size - row;
  }

  const FlashStream& s_;
  int64_t left_;
  int64_t left_in_page_ = 0;
  int64_t page_ = 0;
  const char* k_ = nullptr;
  const char* v_ = nullptr;
};

// The softmax of all rows: 16 rows a vector.
struct StreamSoftmax {
  alignas(64) float max[kMaxStreamRows];
  alignas(64) float sum[kMaxStreamRows];
  alignas(64) float scale[kMaxStreamRows];
  alignas(64) float rescale[kMaxStreamRows];  // what the output is multiplied by, where `rescaled`
  alignas(64) int32_t first[kMaxStreamRows];
  alignas(64) int32_t last[kMaxStreamRows];
  int rows = 0;                     // a multiple of 16
  int all_first = 0, all_last = 0;  // keys that every row sees
  float softcap = 0.0f;
  bool rescaled = false;

  explicit StreamSoftmax(const FlashStream& s) : softcap(s.softcap) {
    const int count = s.heads * s.rows;
    rows = (count + 15) / 16 * 16;
    all_first = s.first[0];
    all_last = s.last[0];
    for (int r = 0; r < rows; ++r) {
      const int row = r < count ? r % s.rows : 0;
      max[r] = kNegativeInfinity;
      sum[r] = 0.0f;
      scale[r] = r < count ? s.scale[r / s.rows] : 0.0f;
      first[r] = s.first[row];
      last[r] = s.last[row];
      all_first = first[r] > all_first ? first[r] : all_first;
      all_last = last[r] < all_last ? last[r] : all_last;
    }
  }

  // scores [kTokens][stride] to weights [kTokens / 2][stride]: pairs of keys, in bf16.
  void absorb(int64_t key, const float* scores, int stride, uint32_t* weights) {
    const bool masked = key < all_first || key + kTokens - 1 > all_last;
    rescaled = false;
    for (int r = 0; r < rows; r += 16) {
      const Vec factor = vec_load(scale + r), old_max = vec_load(max + r);
      Vec score[kTokens];
      Vec new_max = old_max;
#pragma GCC unroll 8
      for (int j = 0; j < kTokens; ++j) {
        score[j] = vec_mul(vec_load(scores + j * stride + r), factor);
        if (softcap > 0.0f) score[j] = vec_mul(vec_tanh(score[j]), vec_set(softcap));
        if (masked) {
          const __m512i at = _mm512_set1_epi32(static_cast<int>(key + j));
          const __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_load_si512(first + r), at) &
                                 _mm512_cmpge_epi32_mask(_mm512_load_si512(last + r), at);
          score[j].v = _mm512_mask_blend_ps(seen, _mm512_set1_ps(kNegativeInfinity), score[j].v);
        }
        new_max = vec_max(new_max, score[j]);
      }
      Vec shift = new_max;
      if (masked) {  // nothing seen yet: every weight is 0, and exp(-inf - -inf) must not be asked for
        const __mmask16 none = _mm512_cmp_ps_mask(new_max.v, _mm512_set1_ps(kNegativeInfinity), _CMP_EQ_OQ);
        shift.v = _mm512_mask_blend_ps(none, new_max.v, _mm512_setzero_ps());
      }
      Vec total = vec_load(sum + r);
      const __mmask16 moved = _mm512_cmp_ps_mask(new_max.v, old_max.v, _CMP_NEQ_OQ);
      Vec by = vec_set(1.0f);
      if (moved != 0) {
        rescaled = true;
        by.v = _mm512_mask_blend_ps(moved, by.v, vec_exp2(vec_sub(old_max, shift)).v);
        total = vec_mul(total, by);
        vec_store(max + r, new_max);
      }
      vec_store(rescale + r, by);
#pragma GCC unroll 8
      for (int j = 0; j < kTokens; j += 2) {
        const Vec a = vec_exp2(vec_sub(score[j], shift)), b = vec_exp2(vec_sub(score[j + 1], shift));
        total = vec_add(total, vec_add(a, b));
        const __m256bh low = _mm512_cvtneps_pbh(a.v), high = _mm512_cvtneps_pbh(b.v);
        const __m512i low_words = _mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(low));
        const __m512i high_words = _mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(high));
        _mm512_store_si512(weights + j / 2 * stride + r, _mm512_or_si512(low_words, _mm512_slli_epi32(high_words, 16)));
      }
      vec_store(sum + r, total);
    }
  }
};

// o[row][0 .. kVecs vectors) += weights . v for the rows of one head, over one tile; o in the order of load_values.
template <int kRows, int kVecs>
__attribute__((always_inline)) inline void stream_output(const char* const (&v)[kTokens], int64_t offset,
                                                         const uint32_t* weights, int stride, float* o,
                                                         int head_dim_v) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sums[r][i] = vec_load(o + int64_t{r} * head_dim_v + i * 16);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kTokens; j += 2) {
    const void* const pair[2] = {v[j], v[j + 1]};
    __m512i values[kVecs];
    Bf16Math::load_values(pair, offset, 0, 2, 0, values);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i weight = Bf16Math::broadcast(weights + j / 2 * stride + r);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) sums[r][i] = Bf16Math::multiply_add(values[i], weight, sums[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) vec_store(o + int64_t{r} * head_dim_v + i * 16, sums[r][i]);
  }
}

// A token's K, and what is asked for meanwhile: the first of kHeads heads of each.
struct StreamToken {
  const char* k;
  const char* next_k[2];
  const char* next_v[2];
};

// The scores of one token in kHeads heads. With one or two rows a head, several heads' sums are reduced together.
template <int kRows, int kHeads>
__attribute__((always_inline)) inline void stream_scores(const FlashStream& s, const StreamToken& token,
                                                         const uint16_t* q, int head_dim, int head_dim_v,
                                                         float* scores) {
  const int64_t k_head_stride = s.k_head_stride, v_head_stride = s.v_head_stride;
  constexpr int kSums = (kHeads * kRows + 3) / 4 * 4;
  Vec sums[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i) sums[i] = vec_zero();
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int element = 0; element < head_dim; element += 32) {
      const __m512i key = _mm512_loadu_si512(token.k + h * k_head_stride + element * 2);
#pragma GCC unroll 2
      for (const char* next : token.next_k) __builtin_prefetch(next + h * k_head_stride + element * 2);
      if (element < head_dim_v) {
#pragma GCC unroll 2
        for (const char* next : token.next_v) __builtin_prefetch(next + h * v_head_stride + element * 2);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        Vec& sum = sums[h * kRows + r];
        sum = Bf16Math::multiply_add(key, _mm512_loadu_si512(q + (h * kRows + r) * head_dim + element), sum);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int element = head_dim; element < head_dim_v; element += 32) {
      for (const char* next : token.next_v) __builtin_prefetch(next + h * v_head_stride + element * 2);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < kSums; i += 4)
    _mm_storeu_ps(scores + i, vec_sums(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
}

// The K of tokens 0 .. kKeysAhead - 1 and the V of kValuesAhead of them: what no token before asks for.
inline void ask_for_the_first(const FlashStream& s, const char* const* k_at, const char* const* v_at) {
  for (int i = 0; i < kKeysAhead; ++i) {
    for (int head = 0; head < s.heads; ++head) {
      for (int byte = 0; byte < s.head_dim * 2; byte += 64) __builtin_prefetch(k_at[i] + head * s.k_head_stride + byte);
      if (i >= kValuesAhead) continue;
      for (int byte = 0; byte < s.head_dim_v * 2; byte += 64)
        __builtin_prefetch(v_at[i] + head * s.v_head_stride + byte);
    }
  }
}

inline void rescale_output(const FlashStream& s, const StreamSoftmax& softmax) {
  for (int r = 0; r < s.heads * s.rows; ++r) {
    if (softmax.rescale[r] == 1.0f) continue;
    const Vec by = vec_set(softmax.rescale[r]);
    float* const o = s.o + int64_t{r} * s.head_dim_v;
    for (int c = 0; c < s.head_dim_v; c += 16) vec_store(o + c, vec_mul(vec_load(o + c), by));
  }
}

inline void store_results(const FlashStream& s, const StreamSoftmax& softmax) {
  for (int r = 0; r < s.heads * s.rows; ++r) {
    s.max[r] = softmax.max[r];
    s.sum[r] = softmax.sum[r];
    float* const o = s.o + int64_t{r} * s.head_dim_v;
    for (int c = 0; c < s.head_dim_v; c += 32) {
      Vec pair[2] = {vec_load(o + c), vec_load(o + c + 16)};
      Bf16Math::from_value_order(pair);
      vec_store(o + c, pair[0]);
      vec_store(o + c + 16, pair[1]);
    }
  }
}

// kDim: head_dim and head_dim_v where they are the usual ones (at 64, 0.93 of a plain read instead of 0.84); 0: any.
// The state of the loop is local: as members it would be loaded again after every vector store (0.90 instead of 0.94).
template <int kRows, int kHeads, int kDim>
void stream(const FlashStream& s) {
  const int head_dim = kDim > 0 ? kDim : s.head_dim, head_dim_v = kDim > 0 ? kDim : s.head_dim_v;
  const int heads = s.heads;
  const int64_t k_head_stride = s.k_head_stride, v_head_stride = s.v_head_stride;
  float* const o = s.o;
  StreamSoftmax softmax(s);
  // Scores are stored four rows at a time, past the last row too.
  constexpr int kSlack = 16, kMaxStride = kMaxStreamRows + kSlack;
  const int stride = softmax.rows + kSlack;
  alignas(64) float scores[kTokens * kMaxStride];
  alignas(64) uint32_t weights[kTokens / 2 * kMaxStride];
  for (int i = 0; i < kTokens * stride; i += 16) vec_store(scores + i, vec_zero());
  for (int i = 0; i < heads * kRows * head_dim_v; i += 16) vec_store(o + i, vec_zero());
  const char* k_at[kRing];
  const char* v_at[kRing];
  TokenAddresses addresses(s);
  if (s.count > 0) {
    for (int i = 0; i < kKeysAhead; ++i) addresses.next(k_at[i], v_at[i]);
    ask_for_the_first(s, k_at, v_at);
  }

  // The tile before, whose output is computed beside the scores: its first token, how far it has come, and how many
  // units are left of it.
  const int units_per_head = (head_dim_v + 63) / 64;
  int64_t output_tile = 0;
  int output_head = 0, output_column = 0, units_left = 0;
  const auto output_unit = [&]() __attribute__((always_inline)) {  // of one head, 64 columns
    const char* v[kTokens];
#pragma GCC unroll 4
    for (int j = 0; j < kTokens; ++j) v[j] = v_at[(output_tile + j) % kRing];
    float* const to = o + int64_t{output_head} * kRows * head_dim_v + output_column;
    const int64_t offset = output_head * v_head_stride + output_column * 2;
    const uint32_t* const w = weights + output_head * kRows;
    if (kDim == 0 && output_column + 64 > head_dim_v) {
      stream_output<kRows, 2>(v, offset, w, stride, to, head_dim_v);
    } else if constexpr (kRows <= 7) {
      stream_output<kRows, 4>(v, offset, w, stride, to, head_dim_v);
    } else {
      stream_output<kRows, 2>(v, offset, w, stride, to, head_dim_v);
      stream_output<kRows, 2>(v, offset + 64, w, stride, to + 32, head_dim_v);
    }
    output_column += 64;
    if (output_column >= head_dim_v) {
      output_column = 0;
      ++output_head;
    }
  };

  int credit = 0;
  for (int64_t tile = 0; tile < s.count; tile += kTokens) {
    for (int j = 0; j < kTokens; ++j) {
      const int64_t token = tile + j, coming = token + kKeysAhead;
      addresses.next(k_at[coming % kRing], v_at[coming % kRing]);
      const char* const k = k_at[token % kRing];
      const char* const next_k[2] = {k_at[coming % kRing], k_at[(token + 1) % kRing]};
      const char* const next_v[2] = {v_at[(token + kValuesAhead) % kRing], v_at[token % kRing]};
      for (int head = 0; head < heads; head += kHeads) {
        const int64_t k_offset = head * k_head_stride, v_offset = head * v_head_stride;
        const StreamToken at{.k = k + k_offset,
                             .next_k = {next_k[0] + k_offset, next_k[1] + k_offset},
                             .next_v = {next_v[0] + v_offset, next_v[1] + v_offset}};
        stream_scores<kRows, kHeads>(s, at, static_cast<const uint16_t*>(s.q) + int64_t{head} * kRows * head_dim,
                                     head_dim, head_dim_v, scores + j * stride + head * kRows);
        // In even steps: all units of the tile before beside all scores of this one.
        if (units_left == 0) continue;
        for (credit += kHeads * units_per_head; credit >= kTokens; credit -= kTokens, --units_left) output_unit();
      }
    }
    softmax.absorb(tile, scores, stride, weights);
    if (softmax.rescaled) rescale_output(s, softmax);
    output_tile = tile;
    output_head = 0;
    units_left = heads * units_per_head;
  }
  for (; units_left > 0; --units_left) output_unit();
  store_results(s, softmax);
}

template <int kRows>
void stream_rows(const FlashStream& s) {
  constexpr int kHeads = kStreamHeads[kRows];
  if (s.head_dim == 128 && s.head_dim_v == 128) {
    stream<kRows, kHeads, 128>(s);
  } else if (s.head_dim == 64 && s.head_dim_v == 64) {
    stream<kRows, kHeads, 64>(s);
  } else {
    stream<kRows, kHeads, 0>(s);
  }
}

void absorb_stream(const FlashStream& s) {
  switch (s.rows) {
    case 1:
      return stream_rows<1>(s);
    case 2:
      return stream_rows<2>(s);
    case 3:
      return stream_rows<3>(s);
    case 4:
      return stream_rows<4>(s);
    case 5:
      return stream_rows<5>(s);
    case 6:
      return stream_rows<6>(s);
    case 7:
      return stream_rows<7>(s);
    case 8:
      return stream_rows<8>(s);
    default:
      return;
  }
}

}  // namespace
}  // namespace onepass::cpu::ONEPASS_ISA

#endif
