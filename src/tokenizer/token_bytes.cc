#include "tokenizer/token_bytes.h"

#include "tokenizer/byte_level.h"

namespace onepass {

TokenBytes::TokenBytes(const Vocab& vocab) {
  offsets_.reserve(static_cast<size_t>(vocab.size()) + 1);
  for (int32_t id = 0; id < vocab.size(); ++id) {
    offsets_.push_back(bytes_.size());
    const auto token = vocab.token(id);
    if (!token) continue;
    // A token that is no byte-level text stands for itself, as decode() takes it.
    const auto bytes = byte_level_to_bytes(*token);
    bytes_ += bytes ? std::string_view(*bytes) : *token;
  }
  offsets_.push_back(bytes_.size());
}

}  // namespace onepass
