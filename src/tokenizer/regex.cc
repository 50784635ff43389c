#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/regex.h"

#include <pcre2.h>

#include <array>
#include <optional>

#include "tokenizer/unicode.h"

namespace onepass {
namespace {

// PCRE2's own \s also takes U+180E, and its \w (10.42) leaves out marks and connectors.
constexpr std::string_view kSpaceMembers = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::string_view kWordMembers = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct CompileContextDeleter {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// "regular expression 'a*'", with as much of a long one as a message can hold.
std::string described(std::string_view pattern) { return str_cat("regular expression '", printable(pattern, 80), "'"); }

std::optional<std::string_view> class_members(char escape) {
  if (escape == 's') return kSpaceMembers;
  if (escape == 'w') return kWordMembers;
  return std::nullopt;
}

}  // namespace

StatusOr<std::string> translate_pattern(std::string_view pattern) {
  const auto refuse = [&](std::string_view what) {
    return unimplemented(described(pattern), ": ", what, " inside [] is not supported");
  };
  std::string out;
  bool in_class = false;
  size_t class_begin = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escape = pattern[++i];
      if (const auto members = class_members(escape)) {
        out += in_class ? std::string(*members) : str_cat("[", *members, "]");
      } else if (const auto complement = class_members(static_cast<char>(escape | 0x20)); complement && !in_class) {
        out += str_cat("[^", *complement, "]");
      } else if (complement) {
        return refuse(escape == 'S' ? "\\S" : "\\W");
      } else {
        out += c;
        out += escape;
      }
      continue;
    }
    if (!in_class) {
      if (c == '[') {
        in_class = true;
        class_begin = i + 1;
        if (class_begin < pattern.size() && pattern[class_begin] == '^') ++class_begin;
      }
    } else if (c == '[') {
      const size_t end = pattern.find(":]", i + 2);
      if (i + 1 >= pattern.size() || pattern[i + 1] != ':' || end == std::string_view::npos) return refuse("'['");
      out += pattern.substr(i, end + 2 - i);  // [:alpha:]
      i = end + 1;
      continue;
    } else if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
      return refuse("'&&'");
    } else if (c == ']' && i > class_begin) {
      in_class = false;
    }
    out += c;
  }
  return out;
}

StatusOr<Regex> Regex::compile(std::string_view pattern) {
  ONEPASS_ASSIGN_OR_RETURN(const std::string translated, translate_pattern(pattern));
  const std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) return resource_exhausted(described(pattern), ": out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get());
  if (code == nullptr) return invalid_argument(described(pattern), ": ", error_text(error));
  std::shared_ptr<const void> owner(code, [code](const void*) { pcre2_code_free(code); });
  // Without native code (a machine that forbids it) the interpreter serves.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(owner));
}

StatusOr<std::vector<Span>> Regex::find_spans(std::string_view text) const {
  std::vector<Span> spans;
  if (text.empty()) return spans;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, MatchContextDeleter> context(pcre2_match_context_create(nullptr));
  if (match == nullptr || context == nullptr) return resource_exhausted("regular expression: out of memory");
  // 200 MB and 10M steps stop a pattern that explodes, and no honest one.
  pcre2_set_heap_limit(context.get(), 200'000);
  pcre2_set_match_limit(context.get(), 10'000'000);
  spans.reserve(text.size() / 4 + 1);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t previous_end = 0;
  bool any = false;
  for (size_t start = 0; start <= text.size();) {
    // The text was checked before: PCRE2 would check all of it again at every match.
    int rc = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, match.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc =
          pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.get(), context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) return resource_exhausted("regular expression: ", error_text(rc));
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(match.get());
    const size_t begin = ovector[0];
    const size_t end = ovector[1];
    if (begin > end || begin < start) return invalid_argument("regular expression: \\K is not supported");
    if (begin == end && any && begin == previous_end) {  // no empty match right behind a match
      if (start >= text.size()) break;
      next_code_point(text, start);
      continue;
    }
    if (begin > previous_end) spans.push_back({previous_end, begin, false});
    spans.push_back({begin, end, true});
    previous_end = end;
    start = end;
    any = true;
  }
  if (previous_end < text.size()) spans.push_back({previous_end, text.size(), false});
  return spans;
}

}  // namespace onepass
