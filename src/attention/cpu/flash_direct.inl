// The one-pass step for few rows (decoding): K and V are read where they lie, once, while the next tile's are asked
// for.
#pragma once

#include "attention/cpu/flash_math.inl"

namespace onepass::cpu::ONEPASS_ISA {
namespace {

// Rows by keys of a register tile where K and V are read where they lie; a dot product runs in the lanes of one vector.
#if defined(__AVX512F__)
constexpr int kDirectRows = 6;
#elif defined(__AVX2__)
constexpr int kDirectRows = 3;
#else
constexpr int kDirectRows = 2;
#endif
constexpr int kDirectKeys = 4;

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

}  // namespace
}  // namespace onepass::cpu::ONEPASS_ISA
