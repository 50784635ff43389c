// Element types and their conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string_view>

#include "base/status.h"

namespace onepass {

enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };

// Bytes of one element.
size_t size_of(DType dtype);

// "float32", "bfloat16", ...: the names that config.json and PyTorch use.
std::string_view to_string(DType dtype);
std::ostream& operator<<(std::ostream& out, DType dtype);

// The inverse for the floating types: also takes the short forms fp32, f32, fp16, f16, bf16.
StatusOr<DType> parse_float_dtype(std::string_view name);

// bfloat16: the upper half of a float32. Storage only.
struct BFloat16 {
  uint16_t bits = 0;
};

// IEEE half precision. Storage only.
struct Float16 {
  uint16_t bits = 0;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
float to_float(Float16 value);

// Rounds to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Rounds to nearest, ties to even; what is too large becomes infinite.
Float16 to_float16(float value);

template <typename T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  return to_bfloat16(value);
}
template <>
inline Float16 from_float<Float16>(float value) {
  return to_float16(value);
}

// Element `index` of an array of a floating dtype at any alignment, as float32; and its inverse, aligned. For code that
// is not hot.
float load_float(const void* data, DType dtype, int64_t index);
void store_float(void* data, DType dtype, int64_t index, float value);

// The whole array at once.
void convert_to_float(const void* source, DType dtype, int64_t count, float* destination);
void convert_from_float(const float* source, DType dtype, int64_t count, void* destination);

}  // namespace onepass
