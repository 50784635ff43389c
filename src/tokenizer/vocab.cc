#include "tokenizer/vocab.h"

namespace onepass {

void Vocab::add(std::string_view token, int32_t id) {
  const Entry entry{.offset = characters_.size(), .length = static_cast<int32_t>(token.size()), .id = id};
  characters_.insert(characters_.end(), token.begin(), token.end());
  entries_.push_back(entry);
  if (static_cast<size_t>(id) >= by_id_.size()) by_id_.resize(static_cast<size_t>(id) + 1);
  by_id_[static_cast<size_t>(id)] = entry;
}

void Vocab::freeze() {
  index_.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    index_[std::string_view(characters_.data() + entry.offset, static_cast<size_t>(entry.length))] = entry.id;
  }
  entries_ = {};
}

std::optional<int32_t> Vocab::find(std::string_view token) const {
  const auto found = index_.find(token);
  if (found == index_.end()) return std::nullopt;
  return found->second;
}

std::optional<std::string_view> Vocab::token(int32_t id) const {
  if (id < 0 || id >= size() || by_id_[static_cast<size_t>(id)].length < 0) return std::nullopt;
  const Entry& entry = by_id_[static_cast<size_t>(id)];
  return std::string_view(characters_.data() + entry.offset, static_cast<size_t>(entry.length));
}

void MergeList::add(std::string_view left, std::string_view right) {
  merges_.push_back({.offset = characters_.size(),
                     .left_length = static_cast<uint32_t>(left.size()),
                     .length = static_cast<uint32_t>(left.size() + right.size())});
  characters_ += left;
  characters_ += right;
}

}  // namespace onepass
