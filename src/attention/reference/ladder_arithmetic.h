// The number types that the ladder computes in: double, float, and Half, which rounds to fp16 after every step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "tensor/dtype.h"

namespace onepass::ladder {

// An fp16 number (largest: 65504), kept in a float that is always rounded to one. Sums, products and exponentials are
// computed in float32 and rounded, which for + - * / is the correctly rounded fp16 result (24 >= 2 * 11 + 2 bits).
class Half {
 public:
  Half() = default;
  explicit Half(float value) : value_(to_float(to_float16(value))) {}
  explicit operator float() const { return value_; }
  explicit operator double() const { return value_; }

  friend Half operator+(Half a, Half b) { return Half(a.value_ + b.value_); }
  friend Half operator-(Half a, Half b) { return Half(a.value_ - b.value_); }
  friend Half operator*(Half a, Half b) { return Half(a.value_ * b.value_); }
  friend Half operator/(Half a, Half b) { return Half(a.value_ / b.value_); }
  friend bool operator<(Half a, Half b) { return a.value_ < b.value_; }

  // a * b + c, rounded once.
  friend Half multiply_add(Half a, Half b, Half c) { return Half(a.value_ * b.value_ + c.value_); }
  friend Half exp(Half x) { return Half(std::exp(x.value_)); }

 private:
  float value_ = 0.0f;
};

inline float exp(float x) { return std::exp(x); }
inline double exp(double x) { return std::exp(x); }
inline float multiply_add(float a, float b, float c) { return a * b + c; }
inline double multiply_add(double a, double b, double c) { return a * b + c; }

// Bytes of one number in memory.
template <typename T>
inline constexpr int64_t kElementBytes = sizeof(T);
template <>
inline constexpr int64_t kElementBytes<Half> = 2;

// What an inner product accumulates in: float32 for fp16, as a tensor core does.
template <typename T>
struct AccumulatorOf {
  using Type = T;
};
template <>
struct AccumulatorOf<Half> {
  using Type = float;
};

template <typename T>
T negative_infinity() {
  return T(-std::numeric_limits<float>::infinity());
}

template <typename T>
T dot(std::span<const T> a, std::span<const T> b) {
  using Accumulator = typename AccumulatorOf<T>::Type;
  Accumulator sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<Accumulator>(a[i]) * static_cast<Accumulator>(b[i]);
  return T(sum);
}

// row += weight * v
template <typename T>
void add_scaled(T weight, std::span<const T> v, std::span<T> row) {
  for (size_t i = 0; i < row.size(); ++i) row[i] = multiply_add(weight, v[i], row[i]);
}

// row *= factor
template <typename T>
void rescale(T factor, std::span<T> row) {
  for (T& x : row) x = x * factor;
}

// row /= divisor
template <typename T>
void divide(T divisor, std::span<T> row) {
  for (T& x : row) x = x / divisor;
}

}  // namespace onepass::ladder
