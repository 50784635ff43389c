#include "tokenizer/pattern.h"

namespace onepass {

StatusOr<Pattern> Pattern::from_json(const json& value, const std::string& where) {
  if (!json_member(value, "String").is_null()) {
    ONEPASS_ASSIGN_OR_RETURN(std::string text, string_field(value, "String", where));
    return literal(std::move(text));
  }
  if (json_member(value, "Regex").is_null()) {
    return invalid_argument(where, ": pattern: expected {\"String\": ...} or {\"Regex\": ...}, found ",
                            value.type_name());
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, string_field(value, "Regex", where));
  auto regex = Regex::compile(text);
  if (!regex.ok()) return annotate(regex.status(), where);
  return Pattern("", *std::move(regex));
}

StatusOr<std::vector<Span>> Pattern::find_spans(std::string_view text) const {
  if (regex_) return regex_->find_spans(text);
  std::vector<Span> spans;
  size_t previous_end = 0;
  while (!literal_.empty()) {
    const size_t begin = text.find(literal_, previous_end);
    if (begin == std::string_view::npos) break;
    if (begin > previous_end) spans.push_back({previous_end, begin, false});
    previous_end = begin + literal_.size();
    spans.push_back({begin, previous_end, true});
  }
  if (previous_end < text.size()) spans.push_back({previous_end, text.size(), false});
  return spans;
}

StatusOr<std::string> Pattern::replace(std::string_view text, std::string_view content) const {
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<Span> spans, find_spans(text));
  std::string out;
  out.reserve(text.size());
  for (const Span& span : spans) out += span.is_match ? content : text.substr(span.begin, span.end - span.begin);
  return out;
}

}  // namespace onepass
