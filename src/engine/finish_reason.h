// Why an answer ended.
#pragma once

#include <cstdint>
#include <string_view>

namespace onepass {

enum class FinishReason : uint8_t {
  kStop,       // an end token or a stop string
  kLength,     // max_new_tokens, the context or the KV cache is full
  kCancelled,  // whoever asked no longer wants it
  kTimeout,    // its deadline has passed
  kError,
};

constexpr std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kTimeout:
      return "timeout";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

}  // namespace onepass
