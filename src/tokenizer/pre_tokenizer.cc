#include "tokenizer/pre_tokenizer.h"

#include <functional>

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace onepass {

struct PreTokenizer::Step {
  // Appends the pieces of one piece.
  std::function<Status(const Piece&, std::vector<Piece>&)> apply;
};

namespace {

using Steps = std::vector<std::shared_ptr<const PreTokenizer::Step>>;
using Spans = std::vector<Span>;

// What becomes of the matches of a pattern (the `tokenizers` library's SplitDelimiterBehavior).
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

StatusOr<Behavior> parse_behavior(const json& value, const std::string& where, const char* fallback) {
  ONEPASS_ASSIGN_OR_RETURN(const std::string name, string_field(value, "behavior", where, fallback));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return invalid_argument(
      where, ": behavior: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, found \"", name,
      "\"");
}

// Spans cover the text in order; those that are matches are treated as `behavior` says.
void cut(const Piece& piece, const Spans& spans, Behavior behavior, std::vector<Piece>& out) {
  Spans parts;
  for (const Span& span : spans) {
    if (span.begin == span.end) continue;
    const bool after_match = !parts.empty() && parts.back().is_match;
    bool merge = false;
    switch (behavior) {
      case Behavior::kRemoved:
      case Behavior::kIsolated:
        break;
      case Behavior::kMergedWithPrevious:
        merge = span.is_match && !parts.empty() && !after_match;
        break;
      case Behavior::kMergedWithNext:
        merge = !span.is_match && after_match;
        break;
      case Behavior::kContiguous:
        merge = !parts.empty() && parts.back().is_match == span.is_match;
        break;
    }
    if (merge) {
      parts.back().end = span.end;
      parts.back().is_match = span.is_match;
    } else {
      parts.push_back(span);
    }
  }
  for (const Span& part : parts) {
    if (behavior == Behavior::kRemoved && part.is_match) continue;
    out.push_back({piece.text.substr(part.begin, part.end - part.begin), piece.first && part.begin == 0});
  }
}

// One span a character, a match where `holds`.
Spans spans_of(const std::string& text, bool (*holds)(uint32_t)) {
  Spans spans;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t code_point = next_code_point(text, at);
    spans.push_back({begin, at, holds(code_point)});
  }
  return spans;
}

void join_neighbours(Spans& spans) {
  Spans joined;
  for (const Span& span : spans) {
    if (!joined.empty() && joined.back().is_match == span.is_match && !span.is_match) {
      joined.back().end = span.end;
    } else {
      joined.push_back(span);
    }
  }
  spans = std::move(joined);
}

class Builder {
 public:
  Builder(Steps& steps, std::string where) : steps_(steps), where_(std::move(where)) {}

  Status add(const json& value, int depth = 0) {
    if (value.is_null()) return ok_status();
    if (depth > 16) return invalid_argument(where_, ": nested too deeply");
    ONEPASS_ASSIGN_OR_RETURN(const std::string type, string_field(value, "type", where_));
    if (type == "Sequence") {
      const json& list = json_member(value, "pretokenizers");
      if (!list.is_array()) return invalid_argument(where_, ": pretokenizers: expected a list");
      for (const json& item : list) ONEPASS_RETURN_IF_ERROR(add(item, depth + 1));
      return ok_status();
    }
    if (type == "Split") return add_split(value);
    if (type == "ByteLevel") return add_byte_level(value);
    if (type == "Metaspace") return add_metaspace(value);
    if (type == "Digits") {
      ONEPASS_ASSIGN_OR_RETURN(const bool individual, bool_field(value, "individual_digits", where_, false));
      return add_characters(is_numeric, individual ? Behavior::kIsolated : Behavior::kContiguous);
    }
    if (type == "WhitespaceSplit") return add_characters(is_whitespace, Behavior::kRemoved);
    if (type == "Punctuation") {
      ONEPASS_ASSIGN_OR_RETURN(const Behavior behavior, parse_behavior(value, where_, "Isolated"));
      return add_characters(is_punctuation, behavior);
    }
    if (type == "Whitespace") return add_pattern(R"(\w+|[^\w\s]+)", Behavior::kRemoved, /*invert=*/true);
    return unimplemented(
        where_, ": type: expected Sequence, Split, ByteLevel, Metaspace, Digits, Whitespace, WhitespaceSplit or ",
        "Punctuation, found \"", type, "\"");
  }

 private:
  void push(std::function<Status(const Piece&, std::vector<Piece>&)> apply) {
    steps_.push_back(std::make_shared<const PreTokenizer::Step>(PreTokenizer::Step{std::move(apply)}));
  }

  Status add_characters(bool (*holds)(uint32_t), Behavior behavior) {
    push([=](const Piece& piece, std::vector<Piece>& out) {
      Spans spans = spans_of(piece.text, holds);
      join_neighbours(spans);
      cut(piece, spans, behavior, out);
      return ok_status();
    });
    return ok_status();
  }

  Status add_spans(Pattern pattern, Behavior behavior, bool invert) {
    push([pattern = std::move(pattern), behavior, invert](const Piece& piece, std::vector<Piece>& out) -> Status {
      ONEPASS_ASSIGN_OR_RETURN(Spans spans, pattern.find_spans(piece.text));
      for (Span& span : spans) span.is_match = span.is_match != invert;
      cut(piece, spans, behavior, out);
      return ok_status();
    });
    return ok_status();
  }

  Status add_pattern(const std::string& regex, Behavior behavior, bool invert) {
    ONEPASS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::from_json(json{{"Regex", regex}}, where_ + ": pattern"));
    return add_spans(std::move(pattern), behavior, invert);
  }

  Status add_split(const json& value) {
    ONEPASS_ASSIGN_OR_RETURN(Pattern pattern, Pattern::from_json(json_member(value, "pattern"), where_ + ": pattern"));
    ONEPASS_ASSIGN_OR_RETURN(const Behavior behavior, parse_behavior(value, where_, ""));
    ONEPASS_ASSIGN_OR_RETURN(const bool invert, bool_field(value, "invert", where_, false));
    return add_spans(std::move(pattern), behavior, invert);
  }

  Status add_byte_level(const json& value) {
    ONEPASS_ASSIGN_OR_RETURN(const bool add_prefix_space, bool_field(value, "add_prefix_space", where_, true));
    ONEPASS_ASSIGN_OR_RETURN(const bool use_regex, bool_field(value, "use_regex", where_, true));
    if (add_prefix_space) {
      push([](const Piece& piece, std::vector<Piece>& out) {
        out.push_back({piece.text.starts_with(' ') ? piece.text : " " + piece.text, piece.first});
        return ok_status();
      });
    }
    if (use_regex) {  // GPT-2's
      ONEPASS_RETURN_IF_ERROR(
          add_pattern(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                      Behavior::kIsolated, /*invert=*/false));
    }
    push([](const Piece& piece, std::vector<Piece>& out) {
      out.push_back({bytes_to_byte_level(piece.text), piece.first});
      return ok_status();
    });
    return ok_status();
  }

  Status add_metaspace(const json& value) {
    ONEPASS_ASSIGN_OR_RETURN(const std::string replacement, character_field(value, "replacement", where_, "\u2581"));
    ONEPASS_ASSIGN_OR_RETURN(const bool add_prefix_space, bool_field(value, "add_prefix_space", where_, true));
    ONEPASS_ASSIGN_OR_RETURN(const std::string scheme,
                             string_field(value, "prepend_scheme", where_, add_prefix_space ? "always" : "never"));
    ONEPASS_ASSIGN_OR_RETURN(const bool split, bool_field(value, "split", where_, true));
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      return invalid_argument(where_, ": prepend_scheme: expected always, first or never, found \"", scheme, "\"");
    }
    const Pattern space = Pattern::literal(" "), mark = Pattern::literal(replacement);
    push([=](const Piece& piece, std::vector<Piece>& out) -> Status {
      Piece marked = piece;
      ONEPASS_ASSIGN_OR_RETURN(marked.text, space.replace(piece.text, replacement));
      const bool wanted = scheme == "always" || (scheme == "first" && piece.first);
      if (wanted && !marked.text.starts_with(replacement)) marked.text.insert(0, replacement);
      if (!split) {
        out.push_back(std::move(marked));
        return ok_status();
      }
      ONEPASS_ASSIGN_OR_RETURN(const Spans spans, mark.find_spans(marked.text));
      cut(marked, spans, Behavior::kMergedWithNext, out);
      return ok_status();
    });
    return ok_status();
  }

  Steps& steps_;
  const std::string where_;
};

}  // namespace

StatusOr<PreTokenizer> PreTokenizer::from_json(const json& value, const std::string& where) {
  PreTokenizer result;
  ONEPASS_RETURN_IF_ERROR(Builder(result.steps_, where).add(value));
  return result;
}

StatusOr<std::vector<Piece>> PreTokenizer::apply(Piece text) const {
  std::vector<Piece> pieces;
  pieces.push_back(std::move(text));
  for (const auto& step : steps_) {
    std::vector<Piece> next;
    next.reserve(pieces.size());
    for (const Piece& piece : pieces) ONEPASS_RETURN_IF_ERROR(step->apply(piece, next));
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace onepass
