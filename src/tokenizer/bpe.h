// Byte-pair encoding (Sennrich et al. 2016) with ranked merges.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "tokenizer/json_fields.h"
#include "tokenizer/vocab.h"

namespace onepass {

// Immutable; any thread may encode.
class BpeModel {
 public:
  // `model` is tokenizer.json's "model" without its tables; `where` names it in errors. Takes the tables over.
  static StatusOr<BpeModel> create(const json& model, Vocab vocab, const MergeList& merges, const std::string& where);

  BpeModel(BpeModel&&) noexcept = default;
  BpeModel& operator=(BpeModel&&) noexcept = default;

  // Appends the ids of one pre-tokenized piece, well-formed UTF-8: its characters, merged pair by pair, lowest rank
  // first, leftmost first among equals; O(n log n). A character outside the vocabulary becomes its <0xXX> bytes
  // (byte_fallback), else unk_token, else nothing.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  const Vocab& vocab() const { return vocab_; }
  bool byte_fallback() const { return byte_fallback_; }

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t id = 0;
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const {
      pair *= 0x9E3779B97F4A7C15U;  // 2^64 / golden ratio: spreads both halves over the high bits
      return pair ^ (pair >> 32);
    }
  };
  struct Symbol {
    int32_t id = 0;
    int32_t previous = -1;
    int32_t next = -1;
  };

  static uint64_t pair_key(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }

  BpeModel() = default;
  Status read_merges(const MergeList& merges, const std::string& where);
  void read_byte_tokens();
  std::optional<int32_t> find_character(std::string_view character, uint32_t code_point) const;
  void split_characters(std::string_view piece, std::vector<int32_t>& symbols) const;
  void merge_all(std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  Vocab vocab_;
  absl::flat_hash_map<uint64_t, Merge, PairHash> merges_;
  std::array<int32_t, 0x400> low_characters_{};  // ids of the characters below U+0400; -1 outside the vocabulary
  std::array<int32_t, 256> byte_tokens_{};       // ids of <0x00> to <0xFF>; -1 outside the vocabulary
  std::optional<int32_t> unk_id_;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace onepass
