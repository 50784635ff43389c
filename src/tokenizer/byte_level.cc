#include "tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "tokenizer/unicode.h"

namespace onepass {
namespace {

constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

// 188 printable bytes stand for themselves; the other 68 get U+0100, U+0101, ... in order.
constexpr std::array<uint16_t, 256> kByteToCharacter = [] {
  std::array<uint16_t, 256> table{};
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) table[byte] = is_printable(byte) ? static_cast<uint16_t>(byte) : next++;
  return table;
}();

constexpr int kNumCharacters = 0x100 + 68;

constexpr std::array<int16_t, kNumCharacters> kCharacterToByte = [] {
  std::array<int16_t, kNumCharacters> table{};
  for (auto& entry : table) entry = -1;
  for (int byte = 0; byte < 256; ++byte) table[kByteToCharacter[byte]] = static_cast<int16_t>(byte);
  return table;
}();

}  // namespace

std::string bytes_to_byte_level(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 4 + 2);
  for (const char c : text) append_utf8(kByteToCharacter[static_cast<unsigned char>(c)], out);
  return out;
}

std::optional<std::string> byte_level_to_bytes(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const uint32_t c = next_code_point(text, offset);
    if (c >= kNumCharacters || kCharacterToByte[c] < 0) return std::nullopt;
    out += static_cast<char>(kCharacterToByte[c]);
  }
  return out;
}

}  // namespace onepass
