#include "tensor/device.h"

#include <charconv>

namespace onepass {

StatusOr<Device> parse_device(std::string_view name) {
  if (name == "cpu") return Device();
  constexpr std::string_view kCuda = "cuda";
  if (name == kCuda) return Device{.kind = DeviceKind::kCuda};
  if (name.starts_with("cuda:")) {
    const std::string_view digits = name.substr(kCuda.size() + 1);
    int index = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc() && end == digits.data() + digits.size() && index >= 0) {
      return Device{.kind = DeviceKind::kCuda, .index = index};
    }
  }
  return invalid_argument("device: expected cpu, cuda or cuda:N, found \"", printable(name, 40), "\"");
}

std::string to_string(const Device& device) {
  if (device.kind == DeviceKind::kCpu) return "cpu";
  return str_cat("cuda:", device.index);
}

}  // namespace onepass
