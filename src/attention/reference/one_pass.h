// Fourth rung: FlashAttention. What rescaling does for the sum it does for the output too.
//
//     m' = max(m, max_j s_j)        l' = l exp(m - m') + sum_j exp(s_j - m')
//                                   o' = o exp(m - m') + sum_j exp(s_j - m') v_j
//
// over one tile of keys at a time; o / l at the end. Each score is used where it was computed and forgotten: one pass,
// and nothing held that grows with n. (Dao et al. 2022, algorithm 1; the loop order, queries outside and keys inside,
// and the one division at the end are those of Dao 2023, algorithm 1. Constant memory: Rabe & Staats 2021.)
#pragma once

#include "attention/reference/ladder_head.h"

namespace onepass::ladder {

template <typename T>
void one_pass(Head<T>& head) {
  const Shape& shape = head.shape;
  Meter& meter = head.meter;
  Tile<T> q(meter, shape.row_tile, shape.d);
  Tile<T> k(meter, shape.key_tile, shape.d);
  Tile<T> v(meter, shape.key_tile, shape.d);
  Tile<T> o(meter, shape.row_tile, shape.d);
  Tile<T> m(meter, shape.row_tile, 1);
  Tile<T> l(meter, shape.row_tile, 1);
  Tile<T> s(meter, shape.key_tile, 1);  // the scores of one query; a GPU kernel holds those of all rows of the tile

  for (Range rows : tiles(shape.n, shape.row_tile)) {
    q.load(head.q, rows);
    m.fill(rows, negative_infinity<T>());
    l.fill(rows, T(0));
    o.fill(rows, T(0));
    for (Range keys : tiles(shape.visible_keys(rows), shape.key_tile)) {
      k.load(head.k, keys);
      v.load(head.v, keys);
      for (int64_t i : rows) {
        const Range visible = shape.visible(i, keys);
        if (visible.size() <= 0) continue;
        T m_new = m[i];
        s.place(keys);
        for (int64_t j : visible) {
          s[j] = head.scale * dot<T>(q.row(i), k.row(j));
          m_new = std::max(m_new, s[j]);
        }
        // What has been summed up so far moves to the new maximum.
        const T correction = exp(m[i] - m_new);
        l[i] = l[i] * correction;
        rescale<T>(correction, o.row(i));
        for (int64_t j : visible) {
          const T weight = exp(s[j] - m_new);
          l[i] = l[i] + weight;
          add_scaled<T>(weight, v.row(j), o.row(i));
        }
        m[i] = m_new;
      }
    }
    for (int64_t i : rows) divide<T>(l[i], o.row(i));
    o.store(head.out, rows);
  }
}

}  // namespace onepass::ladder
