// What the four algorithms of the ladder are given: one attention head.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/reference/ladder_memory.h"

namespace onepass::ladder {

struct Shape {
  int64_t n = 0;        // queries, and keys
  int64_t d = 0;        // head_dim
  bool causal = false;  // query i sees keys 0 .. i
  // How many rows of Q (and O), and of K and V, lie on chip at a time.
  int64_t row_tile = 128;
  int64_t key_tile = 64;

  // Keys that some query of `rows` sees: 0 .. visible_keys-1.
  int64_t visible_keys(Range rows) const { return causal ? rows.past : n; }

  // Those of `keys` that query i sees.
  Range visible(int64_t i, Range keys) const { return causal ? Range{keys.first, std::min(keys.past, i + 1)} : keys; }
};

// out = softmax(scale Q K^T) V; all [n, d].
template <typename T>
struct Head {
  Head(const Shape& head_shape, T score_scale, Meter& head_meter)
      : shape(head_shape),
        scale(score_scale),
        meter(head_meter),
        q(head_meter, shape.n, shape.d),
        k(head_meter, shape.n, shape.d),
        v(head_meter, shape.n, shape.d),
        out(head_meter, shape.n, shape.d) {}

  Shape shape;
  T scale;
  Meter& meter;
  Matrix<T> q;
  Matrix<T> k;
  Matrix<T> v;
  Matrix<T> out;
};

}  // namespace onepass::ladder
