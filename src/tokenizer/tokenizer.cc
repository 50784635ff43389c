#include "tokenizer/tokenizer.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/mapped_file.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_processor.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/token_bytes.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/unicode.h"

namespace onepass {

struct Tokenizer::Parts {
  BpeModel model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  PostProcessor post_processor;
  TokenDecoder decoder;
  TokenBytes token_bytes;               // of a byte-level decoder
  AddedTokenMatcher raw_tokens;         // found in the text as given
  AddedTokenMatcher normalized_tokens;  // found in the normalized text
  absl::flat_hash_map<int32_t, AddedToken> added_by_id;
  absl::flat_hash_map<std::string, int32_t> added_by_content;
  absl::flat_hash_set<int32_t> byte_tokens;
  int vocab_size = 0;
  std::optional<int32_t> bos_id, eos_id;

  // The ids of a part without added tokens.
  Status encode_part(std::string_view text, bool first, std::vector<int32_t>& ids) const {
    ONEPASS_ASSIGN_OR_RETURN(const std::vector<Piece> pieces, pre_tokenizer.apply({std::string(text), first}));
    for (const Piece& piece : pieces) model.encode(piece.text, ids);
    return ok_status();
  }
};

namespace {

// "<s>", or {"content": "<s>"}.
std::string token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  const json& content = json_member(value, "content");
  return content.is_string() ? content.get<std::string>() : "";
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  ONEPASS_ASSIGN_OR_RETURN(TokenizerJson file, parse_tokenizer_json(text, path));
  ONEPASS_ASSIGN_OR_RETURN(const json config, read_optional_json(model_dir + "/tokenizer_config.json"));

  const json& model_json = json_member(file.root, "model");
  // Files of old have no type; they are BPE where they have merges.
  ONEPASS_ASSIGN_OR_RETURN(const std::string type,
                           string_field(model_json, "type", path + ": model", file.has_merges ? "BPE" : ""));
  if (type != "BPE") return unimplemented(path, ": model: type: expected BPE, found \"", type, "\"");
  if (!file.has_vocab || !file.has_merges)
    return invalid_argument(path, ": model: expected vocab and merges, found ",
                            file.has_vocab ? "no merges" : "no vocab");
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<AddedToken> added,
                           parse_added_tokens(json_member(file.root, "added_tokens"), path + ": added_tokens"));
  ONEPASS_ASSIGN_OR_RETURN(BpeModel model,
                           BpeModel::create(model_json, std::move(file.vocab), file.merges, path + ": model"));
  auto parts = std::make_unique<Parts>(Parts{.model = std::move(model)});
  const auto part = [&](const char* key) -> const json& { return json_member(file.root, key); };
  ONEPASS_ASSIGN_OR_RETURN(parts->normalizer, Normalizer::from_json(part("normalizer"), path + ": normalizer"));
  ONEPASS_ASSIGN_OR_RETURN(parts->pre_tokenizer,
                           PreTokenizer::from_json(part("pre_tokenizer"), path + ": pre_tokenizer"));
  ONEPASS_ASSIGN_OR_RETURN(parts->post_processor,
                           PostProcessor::from_json(part("post_processor"), path + ": post_processor"));
  ONEPASS_ASSIGN_OR_RETURN(parts->decoder, TokenDecoder::from_json(part("decoder"), path + ": decoder"));
  if (parts->decoder.is_byte_level()) parts->token_bytes = TokenBytes(parts->model.vocab());

  parts->vocab_size = parts->model.vocab().size();
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : added) {
    parts->added_by_id[token.id] = token;
    parts->added_by_content[token.content] = token.id;
    parts->vocab_size = std::max(parts->vocab_size, token.id + 1);
    if (!token.normalized) {
      raw.push_back(token);
      continue;
    }
    // It is looked for in normalized text, so it is normalized itself.
    AddedToken in_text = token;
    ONEPASS_ASSIGN_OR_RETURN(in_text.content, parts->normalizer.apply(replace_invalid_utf8(token.content)));
    // The `tokenizers` library decodes such a token as what it looks for.
    parts->added_by_id[token.id].content = in_text.content;
    normalized.push_back(std::move(in_text));
  }
  parts->raw_tokens = AddedTokenMatcher(std::move(raw));
  parts->normalized_tokens = AddedTokenMatcher(std::move(normalized));
  if (parts->model.byte_fallback()) {
    for (int byte = 0; byte < 256; ++byte) {
      constexpr char kHex[] = "0123456789ABCDEF";
      const std::string name = std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">";
      if (const auto id = parts->model.vocab().find(name)) parts->byte_tokens.insert(*id);
    }
  }
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(nullptr));
  Parts& loaded = *parts;
  tokenizer->parts_ = std::move(parts);
  loaded.bos_id = tokenizer->token_to_id(token_text(json_member(config, "bos_token")));
  loaded.eos_id = tokenizer->token_to_id(token_text(json_member(config, "eos_token")));
  return tokenizer;
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

StatusOr<std::vector<int32_t>> Tokenizer::encode(std::string_view given, const EncodeOptions& options) const {
  std::string repaired;
  std::string_view text = given;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  for (const AddedSpan& span : parts_->raw_tokens.split(text, options.parse_special_tokens)) {
    if (span.id >= 0) {
      ids.push_back(span.id);
      continue;
    }
    const bool first = span.text.data() == text.data();
    ONEPASS_ASSIGN_OR_RETURN(const std::string normalized, parts_->normalizer.apply(std::string(span.text)));
    for (const AddedSpan& inner : parts_->normalized_tokens.split(normalized, options.parse_special_tokens)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        ONEPASS_RETURN_IF_ERROR(parts_->encode_part(inner.text, first && inner.text.data() == normalized.data(), ids));
      }
    }
  }
  return options.add_special_tokens ? parts_->post_processor.apply(std::move(ids)) : ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (int32_t id : ids) {
    if (skip_special_tokens && is_special(id)) continue;
    if (auto token = id_to_token(id)) tokens.push_back(*std::move(token));
  }
  return parts_->decoder.apply(std::move(tokens));
}

bool Tokenizer::is_byte_level() const { return parts_->decoder.is_byte_level(); }

void Tokenizer::append_bytes(int32_t id, bool skip_special_tokens, std::string& out) const {
  const auto added = parts_->added_by_id.find(id);
  if (added != parts_->added_by_id.end()) {
    if (skip_special_tokens && added->second.special) return;
    // An added token is written as it is unless it could be byte-level characters, as decode() takes it.
    const auto bytes = byte_level_to_bytes(added->second.content);
    out += bytes ? *bytes : added->second.content;
    return;
  }
  out += parts_->token_bytes[id];
}

std::optional<std::string> Tokenizer::id_to_token(int32_t id) const {
  const auto added = parts_->added_by_id.find(id);
  if (added != parts_->added_by_id.end()) return added->second.content;
  if (id < 0 || id >= parts_->model.vocab().size()) return std::nullopt;
  const auto token = parts_->model.vocab().token(id);
  return token ? std::optional<std::string>(*token) : std::nullopt;
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto added = parts_->added_by_content.find(std::string(token));
  if (added != parts_->added_by_content.end()) return added->second;
  return parts_->model.vocab().find(token);
}

bool Tokenizer::is_special(int32_t id) const {
  const auto added = parts_->added_by_id.find(id);
  return added != parts_->added_by_id.end() && added->second.special;
}

bool Tokenizer::is_byte_token(int32_t id) const { return parts_->byte_tokens.contains(id); }
int Tokenizer::vocab_size() const { return parts_->vocab_size; }
std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos_id; }

}  // namespace onepass
