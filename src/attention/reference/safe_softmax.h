// Second rung: subtract the row's maximum before the exponential.
//
//     m_i = max_j s_ij        l_i = sum_j exp(s_ij - m_i)        o_i = sum_j exp(s_ij - m_i) / l_i  v_j
//
// The result is the same, as exp(-m) cancels; no exponential exceeds 1 and l lies between 1 and n. The price is a third
// pass over the scores: the sum cannot begin before the maximum is known. (Milakov & Gimelshein 2018, algorithm 2.)
#pragma once

#include "attention/reference/ladder_head.h"

namespace onepass::ladder {

template <typename T>
void safe_softmax(Head<T>& head) {
  const Shape& shape = head.shape;
  Meter& meter = head.meter;
  Matrix<T> scores = hold_matrix<T>(meter, shape.n, shape.n);
  Matrix<T> maxima = hold_matrix<T>(meter, shape.n, 1);
  Matrix<T> sums = hold_matrix<T>(meter, shape.n, 1);
  Tile<T> q(meter, shape.row_tile, shape.d);
  Tile<T> k(meter, shape.key_tile, shape.d);
  Tile<T> v(meter, shape.key_tile, shape.d);
  Tile<T> o(meter, shape.row_tile, shape.d);
  Tile<T> m(meter, shape.row_tile, 1);
  Tile<T> l(meter, shape.row_tile, 1);

  // First pass: the scores and their maximum.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    q.load(head.q, rows);
    m.fill(rows, negative_infinity<T>());
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      k.load(head.k, keys);
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) {
          const T s = head.scale * dot<T>(q.row(i), k.row(j));
          scores.store(i, j, s);
          m[i] = std::max(m[i], s);
        }
      }
    }
    m.store(maxima, rows);
  }

  // Second pass: the sum of the exponentials.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    m.load(maxima, rows);
    l.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) l[i] = l[i] + exp(scores.load(i, j) - m[i]);
      }
    }
    l.store(sums, rows);
  }

  // Third pass: the weighted sum of the values.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    m.load(maxima, rows);
    l.load(sums, rows);
    o.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      v.load(head.v, keys);
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) {
          const T weight = exp(scores.load(i, j) - m[i]) / l[i];
          add_scaled<T>(weight, v.row(j), o.row(i));
        }
      }
    }
    o.store(head.out, rows);
  }
}

}  // namespace onepass::ladder
