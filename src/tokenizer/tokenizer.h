// Text to token ids and back, as the `tokenizers` library does it for a model folder's tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace onepass {

struct EncodeOptions {
  bool add_special_tokens = true;    // those that the post-processor puts around a text (a BOS, say)
  bool parse_special_tokens = true;  // special tokens written in the text count as such
};

// Immutable; any thread may use it.
class Tokenizer {
 public:
  // Reads DIR/tokenizer.json and, for the names of the special tokens, DIR/tokenizer_config.json. One-line errors name
  // the file, the place and what was found; what is not supported is refused by its name.
  static StatusOr<std::unique_ptr<Tokenizer>> load(const std::string& model_dir);

  ~Tokenizer();

  // The ids of `text`. Bytes that are no UTF-8 count as U+FFFD, one for each maximal ill-formed part, as in Python's
  // errors="replace".
  StatusOr<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // The text of `ids`; unknown ids give nothing. Well-formed UTF-8.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  // Whether decode() is the tokens' bytes one after the other, ill-formed parts replaced; and the bytes of one token.
  bool is_byte_level() const;
  void append_bytes(int32_t id, bool skip_special_tokens, std::string& out) const;

  // The token as it stands in the vocabulary (in byte-level characters, say); nothing for an unused id.
  std::optional<std::string> id_to_token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  bool is_special(int32_t id) const;
  // A token of the form <0x0A>, which stands for a byte in vocabularies with byte fallback.
  bool is_byte_token(int32_t id) const;

  // The largest id + 1.
  int vocab_size() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);

  std::unique_ptr<const Parts> parts_;
};

}  // namespace onepass
