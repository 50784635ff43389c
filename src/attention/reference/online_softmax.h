// Third rung: maximum and sum in one pass.
//
//     m' = max(m, s)        l' = l exp(m - m') + exp(s - m')
//
// l is always the sum of the exponentials seen so far, relative to the largest score seen so far; when the maximum
// grows, the factor exp(m - m') moves the old sum to the new maximum. As safe as the second rung, for the traffic of
// the first. (Milakov & Gimelshein 2018, algorithm 3.)
#pragma once

#include "attention/reference/ladder_head.h"

namespace onepass::ladder {

template <typename T>
void online_softmax(Head<T>& head) {
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

  // First pass: the scores, their running maximum and the running sum of their exponentials.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    q.load(head.q, rows);
    m.fill(rows, negative_infinity<T>());
    l.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      k.load(head.k, keys);
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) {
          const T s = head.scale * dot<T>(q.row(i), k.row(j));
          scores.store(i, j, s);
          const T m_new = std::max(m[i], s);
          l[i] = l[i] * exp(m[i] - m_new) + exp(s - m_new);
          m[i] = m_new;
        }
      }
    }
    m.store(maxima, rows);
    l.store(sums, rows);
  }

  // Second pass: the weighted sum of the values.
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
