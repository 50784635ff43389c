// Tokens and their ids, and the merges of a BPE model as its file lists them. Strings lie in one buffer: a vocabulary
// of 151k tokens loads in a few allocations.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace onepass {

// Ids beyond are refused: the table by id is dense.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

class Vocab {
 public:
  Vocab() = default;
  Vocab(Vocab&&) noexcept = default;
  Vocab& operator=(Vocab&&) noexcept = default;

  // REQUIRES: 0 <= id <= kMaxTokenId and not used yet, freeze() not called yet. Of two ids of one token the later
  // stays.
  void add(std::string_view token, int32_t id);
  // Builds the index by token; needed before find().
  void freeze();

  std::optional<int32_t> find(std::string_view token) const;
  // Nothing where the id is unused.
  std::optional<std::string_view> token(int32_t id) const;
  // The largest id + 1.
  int32_t size() const { return static_cast<int32_t>(by_id_.size()); }

 private:
  struct Entry {
    uint64_t offset = 0;
    int32_t length = -1;  // -1: unused id
    int32_t id = 0;
  };
  struct Hash {
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };

  std::vector<char> characters_;  // no std::string: its small buffer would move with it, and index_ points into it
  std::vector<Entry> entries_;
  std::vector<Entry> by_id_;
  absl::flat_hash_map<std::string_view, int32_t, Hash> index_;
};

// The list "merges": pairs of token strings, the earlier the better.
class MergeList {
 public:
  void add(std::string_view left, std::string_view right);

  size_t size() const { return merges_.size(); }
  std::string_view left(size_t i) const { return merged(i).substr(0, merges_[i].left_length); }
  std::string_view right(size_t i) const { return merged(i).substr(merges_[i].left_length); }
  std::string_view merged(size_t i) const {
    return std::string_view(characters_).substr(merges_[i].offset, merges_[i].length);
  }

 private:
  struct Merge {
    uint64_t offset = 0;
    uint32_t left_length = 0;
    uint32_t length = 0;
  };

  std::string characters_;
  std::vector<Merge> merges_;
};

}  // namespace onepass
