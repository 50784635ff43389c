#include "tokenizer/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/strings.h"
#include "tokenizer/jinja_value.h"

namespace onepass::jinja {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Lexer {
 public:
  explicit Lexer(const std::string& source) : source_(source) {
    // As Jinja2: every line ends in one character, and one newline at the template's end does not count.
    for (size_t at = source_.find('\r'); at != std::string::npos; at = source_.find('\r', at)) {
      source_.replace(at, source_.compare(at, 2, "\r\n") == 0 ? 2 : 1, "\n");
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (position_ < source_.size()) text();
    push(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { throw Error(str_cat("line ", line_, ": ", message)); }

  void push(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  bool at(std::string_view text) const { return source_.compare(position_, text.size(), text) == 0; }

  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + position_, source_.begin() + position_ + count, '\n'));
    position_ += count;
  }

  // Text up to the next tag, then the tag.
  void text() {
    size_t begin = position_;
    size_t tag = begin;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        tag = source_.size();
        break;
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    std::string chunk = source_.substr(begin, tag - begin);
    if (tag == source_.size()) {
      emit_text(chunk);
      advance(tag - begin);
      return;
    }
    const char modifier = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool print = source_[tag + 1] == '{';
    if (modifier == '-') {
      while (!chunk.empty() && is_space(chunk.back())) chunk.pop_back();
    } else if (modifier != '+' && !print) {
      strip_line_start(chunk, begin);
    }
    emit_text(chunk);
    advance(tag - begin);
    if (source_[tag + 1] == '#') return comment();
    advance(2 + (modifier == '-' || modifier == '+' ? 1 : 0));
    if (!print && raw_block()) return;
    tag_contents(print);
  }

  // lstrip_blocks: blanks between the line's start and a block tag go.
  void strip_line_start(std::string& chunk, size_t chunk_begin) const {
    size_t end = chunk.size();
    while (end > 0 && (chunk[end - 1] == ' ' || chunk[end - 1] == '\t')) --end;
    const bool line_start = end > 0 ? chunk[end - 1] == '\n' : chunk_begin == 0 || source_[chunk_begin - 1] == '\n';
    if (line_start) chunk.resize(end);
  }

  void emit_text(const std::string& chunk) {
    if (!chunk.empty()) push(Token::Kind::kText, chunk);
  }

  // After a block or comment: "-" takes all white space, otherwise trim_blocks takes one newline ("+" none).
  void after_tag(char modifier, bool trim_newline) {
    if (modifier == '-') {
      size_t count = 0;
      while (position_ + count < source_.size() && is_space(source_[position_ + count])) ++count;
      advance(count);
    } else if (modifier != '+' && trim_newline) {
      if (at("\n")) advance(1);
    }
  }

  void comment() {
    const size_t end = source_.find("#}", position_ + 2);
    if (end == std::string::npos) fail("a comment without its end #}");
    const char modifier = source_[end - 1];
    advance(end + 2 - position_);
    after_tag(modifier, /*trim_newline=*/true);
  }

  // {% raw %} ... {% endraw %}: everything between is text.
  bool raw_block() {
    size_t cursor = skip_spaces(position_);
    if (source_.compare(cursor, 3, "raw") != 0) return false;
    cursor = skip_spaces(cursor + 3);
    char modifier = '\0';
    if (cursor < source_.size() && source_[cursor] == '-') modifier = source_[cursor++];
    if (source_.compare(cursor, 2, "%}") != 0) return false;
    advance(cursor + 2 - position_);
    after_tag(modifier, /*trim_newline=*/false);
    for (size_t tag = source_.find("{%", position_); tag != std::string::npos; tag = source_.find("{%", tag + 2)) {
      size_t inside = tag + 2;
      const char open = inside < source_.size() ? source_[inside] : '\0';
      if (open == '-' || open == '+') ++inside;
      inside = skip_spaces(inside);
      if (source_.compare(inside, 6, "endraw") != 0) continue;
      inside = skip_spaces(inside + 6);
      char close = '\0';
      if (inside < source_.size() && source_[inside] == '-') close = source_[inside++];
      if (source_.compare(inside, 2, "%}") != 0) continue;
      std::string chunk = source_.substr(position_, tag - position_);
      if (open == '-') {
        while (!chunk.empty() && is_space(chunk.back())) chunk.pop_back();
      } else if (open != '+') {
        strip_line_start(chunk, position_);
      }
      emit_text(chunk);
      advance(inside + 2 - position_);
      after_tag(close, /*trim_newline=*/true);
      return true;
    }
    fail("{% raw %} without its {% endraw %}");
  }

  size_t skip_spaces(size_t cursor) const {
    while (cursor < source_.size() && is_space(source_[cursor])) ++cursor;
    return cursor;
  }

  // Tokens up to the tag's end.
  void tag_contents(bool print) {
    push(print ? Token::Kind::kPrintBegin : Token::Kind::kBlockBegin, "");
    const std::string_view end = print ? "}}" : "%}";
    int brackets = 0;
    while (true) {
      advance(skip_spaces(position_) - position_);
      if (position_ >= source_.size()) fail("a tag without its end " + std::string(end));
      const char c = source_[position_];
      const bool modified = (c == '-' || c == '+') && source_.compare(position_ + 1, 2, end) == 0;
      if (modified || (at(end) && (brackets == 0 || !print))) {
        push(print ? Token::Kind::kPrintEnd : Token::Kind::kBlockEnd, "");
        advance(modified ? 3 : 2);
        after_tag(modified ? c : '\0', /*trim_newline=*/!print);
        return;
      }
      if (c == '(' || c == '[' || c == '{') ++brackets;
      if (c == ')' || c == ']' || c == '}') --brackets;
      if (is_name_start(c)) {
        name();
      } else if (is_digit(c)) {
        number();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        op();
      }
    }
  }

  void name() {
    size_t end = position_;
    while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
    push(Token::Kind::kName, source_.substr(position_, end - position_));
    advance(end - position_);
  }

  void number() {
    size_t end = position_;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < source_.size() && (source_[exponent] == '-' || source_[exponent] == '+')) ++exponent;
      if (exponent < source_.size() && is_digit(source_[exponent])) {
        is_float = true;
        end = exponent;
        digits();
      }
    }
    std::string text = source_.substr(position_, end - position_);
    std::erase(text, '_');
    push(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, text);
    advance(end - position_);
  }

  void string(char quote) {
    std::string value;
    size_t cursor = position_ + 1;
    for (; cursor < source_.size() && source_[cursor] != quote; ++cursor) {
      if (source_[cursor] != '\\' || cursor + 1 >= source_.size()) {
        value += source_[cursor];
        continue;
      }
      cursor = escape(cursor + 1, value);
    }
    if (cursor >= source_.size()) fail("a string without its closing quote");
    push(Token::Kind::kString, value);
    advance(cursor + 1 - position_);
  }

  // One escape of a Python string, at the character after the backslash; returns its last character's place.
  size_t escape(size_t cursor, std::string& value) const {
    constexpr std::string_view kPlain = "ntrabfv0\\'\"";
    constexpr std::string_view kValues("\n\t\r\a\b\f\v\0\\'\"", 11);
    const char c = source_[cursor];
    if (c == '\n') return cursor;
    if (const size_t i = kPlain.find(c); i != std::string_view::npos) {
      value += kValues[i];
      return cursor;
    }
    const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    const std::string digits = source_.substr(std::min(cursor + 1, source_.size()), length);
    if (length == 0 || digits.size() < length ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      value += '\\';
      value += c;
      return cursor;
    }
    append_utf8(std::stoul(digits, nullptr, 16), value);
    return cursor + length;
  }

  void append_utf8(unsigned long code, std::string& value) const {
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("a string escape that is no character");
    if (code < 0x80) {
      value += static_cast<char>(code);
    } else if (code < 0x800) {
      value += static_cast<char>(0xc0 | (code >> 6));
      value += static_cast<char>(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      value += static_cast<char>(0xe0 | (code >> 12));
      value += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
      value += static_cast<char>(0x80 | (code & 0x3f));
    } else {
      value += static_cast<char>(0xf0 | (code >> 18));
      value += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
      value += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
      value += static_cast<char>(0x80 | (code & 0x3f));
    }
  }

  void op() {
    constexpr std::array<std::string_view, 6> kTwo = {"==", "!=", "<=", ">=", "//", "**"};
    for (std::string_view two : kTwo) {
      if (at(two)) {
        push(Token::Kind::kOperator, std::string(two));
        return advance(2);
      }
    }
    const char c = source_[position_];
    if (std::string_view("+-*/%~|<>=()[]{}.,:;").find(c) == std::string_view::npos) {
      fail(str_cat("unexpected character '", std::string(1, c), "'"));
    }
    push(Token::Kind::kOperator, std::string(1, c));
    advance(1);
  }

  std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(const std::string& source) { return Lexer(source).run(); }

}  // namespace onepass::jinja
