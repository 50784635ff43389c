#include "tokenizer/bpe.h"

#include <algorithm>
#include <cstdio>
#include <queue>

#include "tokenizer/unicode.h"

namespace onepass {
namespace {

// Below this the quadratic loop over a small array beats the queue.
constexpr size_t kShortWord = 24;

struct Candidate {
  int32_t rank = 0;
  int32_t position = 0;
  int32_t id = 0;

  // std::priority_queue gives the largest first: the lowest rank, then the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

}  // namespace

StatusOr<BpeModel> BpeModel::create(const json& model, Vocab vocab, const MergeList& merges, const std::string& where) {
  BpeModel bpe;
  bpe.vocab_ = std::move(vocab);
  bpe.vocab_.freeze();
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ONEPASS_ASSIGN_OR_RETURN(const std::string affix, string_field(model, key, where, ""));
    if (!affix.empty()) return unimplemented(where, ": ", key, ": '", affix, "' is not supported, expected null");
  }
  const json& dropout = json_member(model, "dropout");
  if (!dropout.is_null() && !(dropout.is_number() && dropout.get<double>() == 0.0)) {
    return unimplemented(where, ": dropout: expected null or 0, found ", dropout.dump());
  }
  ONEPASS_ASSIGN_OR_RETURN(bpe.fuse_unk_, bool_field(model, "fuse_unk", where, false));
  ONEPASS_ASSIGN_OR_RETURN(bpe.byte_fallback_, bool_field(model, "byte_fallback", where, false));
  ONEPASS_ASSIGN_OR_RETURN(bpe.ignore_merges_, bool_field(model, "ignore_merges", where, false));
  if (!json_member(model, "unk_token").is_null()) {
    ONEPASS_ASSIGN_OR_RETURN(const std::string unk, string_field(model, "unk_token", where));
    bpe.unk_id_ = bpe.vocab_.find(unk);
    if (!bpe.unk_id_) return invalid_argument(where, ": unk_token: '", unk, "' is not in the vocabulary");
  }
  for (uint32_t c = 0; c < bpe.low_characters_.size(); ++c) {
    std::string character;
    append_utf8(c, character);
    bpe.low_characters_[c] = bpe.vocab_.find(character).value_or(-1);
  }
  bpe.read_byte_tokens();
  ONEPASS_RETURN_IF_ERROR(bpe.read_merges(merges, where));
  return bpe;
}

Status BpeModel::read_merges(const MergeList& merges, const std::string& where) {
  merges_.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto left = vocab_.find(merges.left(i));
    const auto right = vocab_.find(merges.right(i));
    const auto merged = vocab_.find(merges.merged(i));
    if (!left || !right || !merged) {
      const std::string_view missing = !left ? merges.left(i) : !right ? merges.right(i) : merges.merged(i);
      return invalid_argument(where, ": merges: entry ", i, ": '", missing, "' is not in the vocabulary");
    }
    merges_[pair_key(*left, *right)] = {.rank = static_cast<int32_t>(i), .id = *merged};
  }
  return ok_status();
}

void BpeModel::read_byte_tokens() {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
    byte_tokens_[byte] = vocab_.find(name.data()).value_or(-1);
  }
}

std::optional<int32_t> BpeModel::find_character(std::string_view character, uint32_t code_point) const {
  if (code_point >= low_characters_.size()) return vocab_.find(character);
  const int32_t id = low_characters_[code_point];
  if (id < 0) return std::nullopt;
  return id;
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (ignore_merges_) {
    if (const auto id = vocab_.find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<int32_t> symbols;
  symbols.reserve(piece.size());
  split_characters(piece, symbols);
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    merge_all(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void BpeModel::split_characters(std::string_view piece, std::vector<int32_t>& symbols) const {
  // An unknown character waits for the next known one, so that a run of them can fuse. Characters that fall back to
  // bytes do not end the run: the `tokenizers` library puts the bytes first then, and so do we.
  const int32_t unk = unk_id_.value_or(-1);
  bool unk_pending = false;
  for (size_t offset = 0; offset < piece.size();) {
    const size_t begin = offset;
    const uint32_t code_point = next_code_point(piece, offset);
    const std::string_view character = piece.substr(begin, offset - begin);
    if (const auto id = find_character(character, code_point)) {
      if (unk_pending) symbols.push_back(unk);
      unk_pending = false;
      symbols.push_back(*id);
      continue;
    }
    const auto byte_token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), [&](char c) { return byte_token(c) >= 0; })) {
      for (const char c : character) symbols.push_back(byte_token(c));
      continue;
    }
    if (unk < 0) continue;
    if (unk_pending && !fuse_unk_) symbols.push_back(unk);
    unk_pending = true;
  }
  if (unk_pending) symbols.push_back(unk);
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeModel::merge_short(std::vector<int32_t>& symbols) const {
  // merge_of[i]: the merge of symbols i and i + 1, or null.
  std::array<const Merge*, kShortWord> merge_of{};
  size_t size = symbols.size();
  for (size_t i = 0; i + 1 < size; ++i) merge_of[i] = find_merge(symbols[i], symbols[i + 1]);
  while (true) {
    size_t best = size;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (merge_of[i] != nullptr && (best == size || merge_of[i]->rank < merge_of[best]->rank)) best = i;
    }
    if (best == size) break;
    symbols[best] = merge_of[best]->id;
    for (size_t i = best + 1; i + 1 < size; ++i) {
      symbols[i] = symbols[i + 1];
      merge_of[i] = merge_of[i + 1];
    }
    --size;
    if (best > 0) merge_of[best - 1] = find_merge(symbols[best - 1], symbols[best]);
    merge_of[best] = best + 1 < size ? find_merge(symbols[best], symbols[best + 1]) : nullptr;
  }
  symbols.resize(size);
}

void BpeModel::merge_all(std::vector<int32_t>& symbols) const {
  std::vector<Symbol> list(symbols.size());
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<Candidate> initial;
  for (int32_t i = 0; i < count; ++i) {
    list[i] = {.id = symbols[i], .previous = i - 1, .next = i + 1 < count ? i + 1 : -1};
    if (i + 1 == count) break;
    if (const Merge* merge = find_merge(symbols[i], symbols[i + 1])) initial.push_back({merge->rank, i, merge->id});
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(initial));
  const auto consider = [&](int32_t left, int32_t right) {
    if (const Merge* merge = find_merge(list[left].id, list[right].id)) queue.push({merge->rank, left, merge->id});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = list[top.position];
    if (left.id < 0 || left.next < 0) continue;  // merged away, or now the last
    const Symbol right = list[left.next];
    const Merge* merge = find_merge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;  // the pair has changed since
    list[left.next].id = -1;
    left.id = top.id;
    left.next = right.next;
    if (right.next >= 0) list[right.next].previous = top.position;
    if (left.previous >= 0) consider(left.previous, top.position);
    if (left.next >= 0) consider(top.position, left.next);
  }
  symbols.clear();
  for (int32_t i = 0; i >= 0 && i < count; i = list[i].next) symbols.push_back(list[i].id);
}

}  // namespace onepass
