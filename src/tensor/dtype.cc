#include "tensor/dtype.h"

#include <cstring>

#include "base/check.h"

namespace onepass {

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 1;
  }
  check_failed(__FILE__, __LINE__, "unknown dtype");
}

std::string_view to_string(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF64:
      return "float64";
    case DType::kI64:
      return "int64";
    case DType::kI32:
      return "int32";
    case DType::kI16:
      return "int16";
    case DType::kI8:
      return "int8";
    case DType::kU8:
      return "uint8";
    case DType::kBool:
      return "bool";
  }
  check_failed(__FILE__, __LINE__, "unknown dtype");
}

std::ostream& operator<<(std::ostream& out, DType dtype) { return out << to_string(dtype); }

StatusOr<DType> parse_float_dtype(std::string_view name) {
  if (name == "float32" || name == "fp32" || name == "f32") return DType::kF32;
  if (name == "float16" || name == "fp16" || name == "f16" || name == "half") return DType::kF16;
  if (name == "bfloat16" || name == "bf16") return DType::kBF16;
  return invalid_argument("dtype: expected float32, float16 or bfloat16, found \"", printable(name), "\"");
}

float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Zero or subnormal: mantissa x 2^-24, exact in float32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

Float16 to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 puts the bits wanted at the end of the mantissa, rounded by the addition itself.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

namespace {

// Tensors lie in files at any alignment.
template <typename T>
T load_element(const void* data, int64_t index) {
  T element;
  std::memcpy(&element, static_cast<const std::byte*>(data) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return element;
}

}  // namespace

float load_float(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return load_element<float>(data, index);
    case DType::kF16:
      return to_float(load_element<Float16>(data, index));
    case DType::kBF16:
      return to_float(load_element<BFloat16>(data, index));
    default:
      check_failed(__FILE__, __LINE__, "load_float of a dtype that is not fp32, fp16 or bf16");
  }
}

void store_float(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kF16:
      static_cast<Float16*>(data)[index] = to_float16(value);
      return;
    case DType::kBF16:
      static_cast<BFloat16*>(data)[index] = to_bfloat16(value);
      return;
    default:
      check_failed(__FILE__, __LINE__, "store_float of a dtype that is not fp32, fp16 or bf16");
  }
}

void convert_to_float(const void* source, DType dtype, int64_t count, float* destination) {
  for (int64_t i = 0; i < count; ++i) destination[i] = load_float(source, dtype, i);
}

void convert_from_float(const float* source, DType dtype, int64_t count, void* destination) {
  for (int64_t i = 0; i < count; ++i) store_float(destination, dtype, i, source[i]);
}

}  // namespace onepass
