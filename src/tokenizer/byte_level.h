// GPT-2's way to write any byte as a printable character, so that a vocabulary of strings covers all bytes
// (Radford et al. 2019, `bytes_to_unicode` of its encoder).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace onepass {

// The characters that stand for the bytes of `text`, in UTF-8.
std::string bytes_to_byte_level(std::string_view text);

// The bytes that well-formed `text` stands for; nothing if a character stands for no byte.
std::optional<std::string> byte_level_to_bytes(std::string_view text);

}  // namespace onepass
