#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/unicode.h"
#include "tokenizer/vocab.h"

namespace onepass {

StatusOr<std::vector<AddedToken>> parse_added_tokens(const json& list, const std::string& where) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  if (!list.is_array()) return invalid_argument(where, ": expected a list, found ", list.type_name());
  for (const json& item : list) {
    AddedToken token;
    ONEPASS_ASSIGN_OR_RETURN(token.id, int_field(item, "id", where, 0, kMaxTokenId));
    ONEPASS_ASSIGN_OR_RETURN(token.content, string_field(item, "content", where));
    ONEPASS_ASSIGN_OR_RETURN(token.special, bool_field(item, "special", where, false));
    ONEPASS_ASSIGN_OR_RETURN(token.normalized, bool_field(item, "normalized", where, !token.special));
    ONEPASS_ASSIGN_OR_RETURN(token.single_word, bool_field(item, "single_word", where, false));
    ONEPASS_ASSIGN_OR_RETURN(token.lstrip, bool_field(item, "lstrip", where, false));
    ONEPASS_ASSIGN_OR_RETURN(token.rstrip, bool_field(item, "rstrip", where, false));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<unsigned char>(tokens_[i].content[0])].push_back(static_cast<int32_t>(i));
  }
}

const AddedToken* AddedTokenMatcher::match_at(std::string_view text, size_t at, bool special) const {
  for (int32_t i : by_first_byte_[static_cast<unsigned char>(text[at])]) {
    const AddedToken& token = tokens_[i];
    if (token.special && !special) continue;
    if (text.compare(at, token.content.size(), token.content) == 0) return &token;
  }
  return nullptr;
}

std::vector<AddedSpan> AddedTokenMatcher::split(std::string_view text, bool special) const {
  std::vector<AddedSpan> spans;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* const token = match_at(text, at, special);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->single_word) {
      size_t behind = end;
      const bool word_before = begin > 0 && is_word(last_code_point(text.substr(0, begin)));
      const bool word_behind = end < text.size() && is_word(next_code_point(text, behind));
      if (word_before || word_behind) continue;
    }
    while (token->lstrip && begin > done) {
      const uint32_t last = last_code_point(text.substr(0, begin));
      if (!is_whitespace(last)) break;
      std::string encoded;
      append_utf8(last, encoded);
      begin -= encoded.size();
    }
    while (token->rstrip && end < text.size()) {
      size_t next = end;
      if (!is_whitespace(next_code_point(text, next))) break;
      end = next;
    }
    if (begin > done) spans.push_back({text.substr(done, begin - done), -1});
    spans.push_back({text.substr(begin, end - begin), token->id});
    done = at = end;
  }
  if (done < text.size()) spans.push_back({text.substr(done), -1});
  return spans;
}

}  // namespace onepass
