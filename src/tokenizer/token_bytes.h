// The bytes of every token of a byte-level vocabulary, decoded once: detokenizing a batch of 256 answers reads some 256
// tokens a step, and decoding their byte-level characters anew took 100 ns for each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/vocab.h"

namespace onepass {

// Immutable once made.
class TokenBytes {
 public:
  TokenBytes() = default;
  explicit TokenBytes(const Vocab& vocab);

  // Valid as long as this object; empty for an unused id or one out of range.
  std::string_view operator[](int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) + 1 >= offsets_.size()) return {};
    return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }

 private:
  std::vector<size_t> offsets_;  // [vocabulary size + 1] into bytes_
  std::string bytes_;
};

}  // namespace onepass
