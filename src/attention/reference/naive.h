// First rung: the formula as it stands.
//
//     s_ij = scale q_i . k_j        l_i = sum_j exp(s_ij)        o_i = sum_j exp(s_ij) / l_i  v_j
//
// Two passes over the n x n scores: one computes them and their sums, one applies them to V. Wrong wherever exp(s)
// leaves the number format: past s = 11.09 in fp16 (65504 is its largest number), past 88.7 in fp32. Then l is
// infinite, and the row is 0 (finite / inf) or NaN (inf / inf).
#pragma once

#include "attention/reference/ladder_head.h"

namespace onepass::ladder {

template <typename T>
void naive(Head<T>& head) {
  const Shape& shape = head.shape;
  Meter& meter = head.meter;
  Matrix<T> scores = hold_matrix<T>(meter, shape.n, shape.n);
  Matrix<T> sums = hold_matrix<T>(meter, shape.n, 1);
  Tile<T> q(meter, shape.row_tile, shape.d);
  Tile<T> k(meter, shape.key_tile, shape.d);
  Tile<T> v(meter, shape.key_tile, shape.d);
  Tile<T> o(meter, shape.row_tile, shape.d);
  Tile<T> l(meter, shape.row_tile, 1);

  // First pass: the scores and the sum of their exponentials.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    q.load(head.q, rows);
    l.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      k.load(head.k, keys);
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) {
          const T s = head.scale * dot<T>(q.row(i), k.row(j));
          scores.store(i, j, s);
          l[i] = l[i] + exp(s);
        }
      }
    }
    l.store(sums, rows);
  }

  // Second pass: the weighted sum of the values.
  for (Range rows : tiles(shape.n, shape.row_tile)) {
    l.load(sums, rows);
    o.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      v.load(head.v, keys);
      for (int64_t i : rows) {
        for (int64_t j : shape.visible(i, keys)) {
          const T weight = exp(scores.load(i, j)) / l[i];
          add_scaled<T>(weight, v.row(j), o.row(i));
        }
      }
    }
    o.store(head.out, rows);
  }
}

}  // namespace onepass::ladder
