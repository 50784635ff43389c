// UTF-8 and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace onepass {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// One step of decoding at the front of a text that may be ill-formed.
struct Utf8Step {
  uint32_t code_point = 0;  // meaningful when valid
  size_t length = 0;        // bytes taken: the character, or the maximal ill-formed part (at least 1)
  bool valid = false;
  bool truncated = false;  // ill-formed only because the text ends: more bytes could complete it
};

// REQUIRES: text is not empty. Follows Unicode 15, section 3.9, table 3-7: what is ill-formed is cut in "maximal
// subparts", as Python's errors="replace", Rust's from_utf8_lossy and the WHATWG decoder do.
Utf8Step utf8_step(std::string_view text);

// The character at `offset` of well-formed UTF-8; moves `offset` behind it. REQUIRES: offset < text.size().
uint32_t next_code_point(std::string_view text, size_t& offset);

// The character that ends well-formed UTF-8. REQUIRES: text is not empty.
uint32_t last_code_point(std::string_view text);

void append_utf8(uint32_t code_point, std::string& out);

bool is_valid_utf8(std::string_view text);

// Each maximal ill-formed part becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

bool is_whitespace(uint32_t code_point);                       // White_Space
bool is_word(uint32_t code_point);                             // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool is_numeric(uint32_t code_point);                          // Nd, Nl, No
bool is_punctuation(uint32_t code_point);                      // P*, and ASCII's symbols
bool is_nonspacing_mark(uint32_t code_point);                  // Mn
void append_lowercase(uint32_t code_point, std::string& out);  // full, context-free mapping

}  // namespace onepass
