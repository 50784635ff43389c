#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <functional>
#include <vector>

#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace onepass {

struct Normalizer::Step {
  std::function<StatusOr<std::string>(std::string)> apply;
};

namespace {

using Apply = std::function<StatusOr<std::string>(std::string)>;

Apply unicode_form(int options) {
  return [options](std::string text) -> StatusOr<std::string> {
    utf8proc_uint8_t* mapped = nullptr;
    const auto length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                     &mapped, static_cast<utf8proc_option_t>(options));
    if (length < 0) return absl::InternalError(str_cat("Unicode normalization: ", utf8proc_errmsg(length)));
    std::string result(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
    std::free(mapped);
    return result;
  };
}

std::string lowercase(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) append_lowercase(next_code_point(text, at), out);
  return out;
}

std::string strip(const std::string& text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    if (!is_whitespace(next_code_point(text, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    const std::string_view rest = std::string_view(text).substr(begin, end - begin);
    const uint32_t last = last_code_point(rest);
    if (!is_whitespace(last)) break;
    std::string encoded;
    append_utf8(last, encoded);
    end -= encoded.size();
  }
  return text.substr(begin, end - begin);
}

Status append_steps(const json& value, const std::string& where, int depth,
                    std::vector<std::shared_ptr<const Normalizer::Step>>& steps) {
  if (value.is_null()) return ok_status();
  if (depth > 16) return invalid_argument(where, ": nested too deeply");
  ONEPASS_ASSIGN_OR_RETURN(const std::string type, string_field(value, "type", where));
  const auto add = [&](Apply apply) {
    steps.push_back(std::make_shared<const Normalizer::Step>(Normalizer::Step{std::move(apply)}));
  };
  if (type == "Sequence") {
    const json& list = json_member(value, "normalizers");
    if (!list.is_array()) return invalid_argument(where, ": normalizers: expected a list");
    for (const json& item : list) ONEPASS_RETURN_IF_ERROR(append_steps(item, where, depth + 1, steps));
  } else if (type == "NFC") {
    add(unicode_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  } else if (type == "NFD") {
    add(unicode_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE));
  } else if (type == "NFKC") {
    add(unicode_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT));
  } else if (type == "NFKD") {
    add(unicode_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT));
  } else if (type == "Lowercase") {
    add([](const std::string& text) -> StatusOr<std::string> { return lowercase(text); });
  } else if (type == "Prepend") {
    ONEPASS_ASSIGN_OR_RETURN(const std::string prefix, string_field(value, "prepend", where));
    add([prefix](const std::string& text) -> StatusOr<std::string> { return text.empty() ? text : prefix + text; });
  } else if (type == "Replace") {
    ONEPASS_ASSIGN_OR_RETURN(const Pattern pattern,
                             Pattern::from_json(json_member(value, "pattern"), where + ": pattern"));
    ONEPASS_ASSIGN_OR_RETURN(const std::string content, string_field(value, "content", where));
    add([pattern, content](const std::string& text) { return pattern.replace(text, content); });
  } else if (type == "Strip") {
    ONEPASS_ASSIGN_OR_RETURN(const bool left, bool_field(value, "strip_left", where, true));
    ONEPASS_ASSIGN_OR_RETURN(const bool right, bool_field(value, "strip_right", where, true));
    add([left, right](const std::string& text) -> StatusOr<std::string> { return strip(text, left, right); });
  } else {
    return unimplemented(
        where, ": type: expected Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace or Strip, found \"", type,
        "\"");
  }
  return ok_status();
}

}  // namespace

StatusOr<Normalizer> Normalizer::from_json(const json& value, const std::string& where) {
  Normalizer normalizer;
  ONEPASS_RETURN_IF_ERROR(append_steps(value, where, 0, normalizer.steps_));
  return normalizer;
}

StatusOr<std::string> Normalizer::apply(std::string text) const {
  // Normal forms grow a text 18-fold at most (NFKC of one Arabic ligature); replacements one after the other have no
  // end.
  const size_t limit = 64 * text.size() + 4096;
  for (const auto& step : steps_) {
    ONEPASS_ASSIGN_OR_RETURN(text, step->apply(std::move(text)));
    if (text.size() > limit) {
      return resource_exhausted("normalizer: the text grows to ", text.size(), " bytes, expected at most ", limit);
    }
  }
  return text;
}

}  // namespace onepass
