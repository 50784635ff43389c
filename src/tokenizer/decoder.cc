#include "tokenizer/decoder.h"

#include <functional>
#include <optional>

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace onepass {

using Tokens = std::vector<std::string>;

struct TokenDecoder::Step {
  std::function<Tokens(Tokens)> apply;
};

namespace {

std::string joined(const Tokens& tokens, const char* separator = "") {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) text += (i > 0 ? separator : "") + tokens[i];
  return text;
}

Tokens decode_byte_level(const Tokens& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    // Added tokens are written as they are, not in byte-level characters.
    const auto decoded = byte_level_to_bytes(token);
    bytes += decoded ? *decoded : token;
  }
  return {replace_invalid_utf8(bytes)};
}

// "<0xE2>" is a byte.
std::optional<char> byte_of(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  const int high = digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

// A run of byte tokens is its characters, or one U+FFFD a byte when it is no UTF-8.
Tokens decode_byte_fallback(Tokens tokens) {
  Tokens out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_valid_utf8(bytes)) {
      out.push_back(bytes);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) out.emplace_back(kReplacementCharacter);
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = byte_of(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  return out;
}

}  // namespace

Status TokenDecoder::read(const json& value, const std::string& where, int depth,
                          std::vector<std::shared_ptr<const Step>>& steps) {
  if (depth > 16) return invalid_argument(where, ": nested too deeply");
  ONEPASS_ASSIGN_OR_RETURN(const std::string type, string_field(value, "type", where));
  const auto add = [&](std::function<Tokens(Tokens)> apply) {
    steps.push_back(std::make_shared<const Step>(Step{std::move(apply)}));
  };
  if (type == "Sequence") {
    const json& list = json_member(value, "decoders");
    if (!list.is_array()) return invalid_argument(where, ": decoders: expected a list");
    for (const json& item : list) ONEPASS_RETURN_IF_ERROR(read(item, where, depth + 1, steps));
  } else if (type == "ByteLevel") {
    add(decode_byte_level);
  } else if (type == "ByteFallback") {
    add(decode_byte_fallback);
  } else if (type == "Fuse") {
    add([](const Tokens& tokens) { return Tokens{joined(tokens)}; });
  } else if (type == "Replace") {
    ONEPASS_ASSIGN_OR_RETURN(const Pattern pattern,
                             Pattern::from_json(json_member(value, "pattern"), where + ": pattern"));
    ONEPASS_ASSIGN_OR_RETURN(const std::string content, string_field(value, "content", where));
    add([pattern, content](Tokens tokens) {
      for (std::string& token : tokens) {
        if (auto replaced = pattern.replace(token, content); replaced.ok()) token = *std::move(replaced);
      }
      return tokens;
    });
  } else if (type == "Strip") {
    ONEPASS_ASSIGN_OR_RETURN(const std::string content, character_field(value, "content", where, " "));
    ONEPASS_ASSIGN_OR_RETURN(const int64_t start, int_field(value, "start", where, 0, 1 << 20));
    ONEPASS_ASSIGN_OR_RETURN(const int64_t stop, int_field(value, "stop", where, 0, 1 << 20));
    add([content, start, stop](Tokens tokens) {
      for (std::string& token : tokens) {
        for (int64_t i = 0; i < start && token.starts_with(content); ++i) token.erase(0, content.size());
        for (int64_t i = 0; i < stop && token.ends_with(content); ++i) token.resize(token.size() - content.size());
      }
      return tokens;
    });
  } else if (type == "Metaspace") {
    ONEPASS_ASSIGN_OR_RETURN(const std::string mark, character_field(value, "replacement", where, "\u2581"));
    ONEPASS_ASSIGN_OR_RETURN(const bool add_prefix_space, bool_field(value, "add_prefix_space", where, true));
    ONEPASS_ASSIGN_OR_RETURN(const std::string scheme,
                             string_field(value, "prepend_scheme", where, add_prefix_space ? "always" : "never"));
    const Pattern pattern = Pattern::literal(mark);
    add([pattern, mark, prepended = scheme != "never"](Tokens tokens) {
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (i == 0 && prepended && tokens[i].starts_with(mark)) tokens[i].erase(0, mark.size());
        if (auto replaced = pattern.replace(tokens[i], " "); replaced.ok()) tokens[i] = *std::move(replaced);
      }
      return tokens;
    });
  } else {
    return unimplemented(
        where, ": type: expected Sequence, ByteLevel, ByteFallback, Fuse, Metaspace, Replace or Strip, found \"", type,
        "\"");
  }
  return ok_status();
}

StatusOr<TokenDecoder> TokenDecoder::from_json(const json& value, const std::string& where) {
  TokenDecoder decoder;
  if (value.is_null()) {
    decoder.join_with_spaces_ = true;
    return decoder;
  }
  ONEPASS_RETURN_IF_ERROR(read(value, where, 0, decoder.steps_));
  decoder.is_byte_level_ = decoder.steps_.size() == 1 && json_member(value, "type") == json("ByteLevel");
  return decoder;
}

std::string TokenDecoder::apply(std::vector<std::string> tokens) const {
  for (const auto& step : steps_) tokens = step->apply(std::move(tokens));
  return joined(tokens, join_with_spaces_ ? " " : "");
}

}  // namespace onepass
