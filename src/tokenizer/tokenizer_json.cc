#include "tokenizer/tokenizer_json.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "base/mapped_file.h"

namespace onepass {
namespace {

// Deeper nesting than any tokenizer needs is refused, so that nothing downstream recurses without bound.
constexpr size_t kMaxDepth = 64;

class Reader : public nlohmann::json_sax<json> {
 public:
  Reader(TokenizerJson& out, const std::string& path) : out_(out), path_(path) {}

  const Status& status() const { return status_; }

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override {
    return mode_ == Mode::kVocab ? vocab_entry(-1, std::to_string(v)) : value(v);
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (mode_ != Mode::kVocab) return value(v);
    const bool fits = v <= static_cast<uint64_t>(kMaxTokenId);
    return vocab_entry(fits ? static_cast<int64_t>(v) : -1, fits ? std::string() : std::to_string(v));
  }
  bool number_float(number_float_t v, const string_t& text) override {
    return mode_ == Mode::kVocab ? vocab_entry(-1, text) : value(v);
  }
  bool binary(binary_t& /*v*/) override { return fail("binary value"); }

  bool string(string_t& v) override {
    if (mode_ != Mode::kMerges) return value(std::move(v));
    if (in_pair_) {
      if (pair_.size() == 2) return fail("model.merges: an entry has more than two tokens");
      pair_.push_back(std::move(v));
      return true;
    }
    if (out_.merges.size() == 0 && v.starts_with("#version")) return true;
    const size_t space = v.find(' ');
    if (space == std::string::npos || v.find(' ', space + 1) != std::string::npos) {
      return fail(str_cat("model.merges: expected two tokens and one space, found '", printable(v, 80), "'"));
    }
    out_.merges.add(std::string_view(v).substr(0, space), std::string_view(v).substr(space + 1));
    return true;
  }

  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }

  bool start_object(size_t /*size*/) override {
    if (mode_ != Mode::kTree) return fail(str_cat(table_name(), ": found an object inside"));
    if (in_model() && key_ == "vocab") {
      mode_ = Mode::kVocab;
      out_.has_vocab = true;
      return true;
    }
    return open(json::object());
  }
  bool end_object() override {
    if (mode_ == Mode::kVocab) {
      mode_ = Mode::kTree;
      return true;
    }
    open_.pop_back();
    return true;
  }
  bool start_array(size_t /*size*/) override {
    if (mode_ == Mode::kMerges && !in_pair_) {
      in_pair_ = true;
      pair_.clear();
      return true;
    }
    if (mode_ != Mode::kTree) return fail(str_cat(table_name(), ": found an array inside"));
    if (in_model() && key_ == "merges") {
      mode_ = Mode::kMerges;
      out_.has_merges = true;
      return true;
    }
    return open(json::array());
  }
  bool end_array() override {
    if (in_pair_) {
      if (pair_.size() != 2) return fail("model.merges: an entry has fewer than two tokens");
      out_.merges.add(pair_[0], pair_[1]);
      in_pair_ = false;
    } else if (mode_ == Mode::kMerges) {
      mode_ = Mode::kTree;
    } else {
      open_.pop_back();
    }
    return true;
  }
  bool parse_error(size_t position, const std::string& /*token*/, const nlohmann::detail::exception& /*e*/) override {
    return fail(str_cat("not valid JSON at byte ", position));
  }

 private:
  enum class Mode { kTree, kVocab, kMerges };

  bool in_model() const { return open_.size() == 2 && model_depth_ && open_.back() == &out_.root["model"]; }
  const char* table_name() const { return mode_ == Mode::kVocab ? "model.vocab" : "model.merges"; }

  bool fail(const std::string& message) {
    if (status_.ok()) status_ = invalid_argument(path_, ": ", message);
    return false;
  }

  bool vocab_entry(int64_t id, const std::string& found) {
    if (id < 0) {
      return fail(str_cat("model.vocab: '", printable(key_, 80), "': expected an id from 0 to ", kMaxTokenId,
                          ", found ", found));
    }
    if (const auto other = out_.vocab.token(static_cast<int32_t>(id))) {
      return fail(str_cat("model.vocab: '", printable(*other, 80), "' and '", printable(key_, 80),
                          "': expected an id each, found ", id, " for both"));
    }
    out_.vocab.add(key_, static_cast<int32_t>(id));
    return true;
  }

  // The place of the next value in the tree.
  json* place(json&& v) {
    if (open_.empty()) {
      out_.root = std::move(v);
      return &out_.root;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(v);
    return &slot;
  }

  template <typename T>
  bool value(T&& v) {
    if (mode_ != Mode::kTree) return fail(str_cat(table_name(), ": found ", json(std::forward<T>(v)).dump()));
    place(json(std::forward<T>(v)));
    return true;
  }

  bool open(json&& container) {
    if (open_.size() == kMaxDepth) return fail(str_cat("expected at most ", kMaxDepth, " nested values"));
    if (open_.size() == 1) model_depth_ = open_.back()->is_object() && key_ == "model";
    open_.push_back(place(std::move(container)));
    return true;
  }

  TokenizerJson& out_;
  const std::string& path_;
  Status status_;
  Mode mode_ = Mode::kTree;
  bool in_pair_ = false;
  bool model_depth_ = false;  // the container at depth 2 is the root's "model"
  std::string key_;
  std::vector<std::string> pair_;
  std::vector<json*> open_;  // the containers around the next value; stable, as only the innermost one grows
};

}  // namespace

StatusOr<TokenizerJson> parse_tokenizer_json(std::string_view text, const std::string& path) {
  TokenizerJson out;
  Reader reader(out, path);
  const bool parsed = json::sax_parse(text.data(), text.data() + text.size(), &reader);
  ONEPASS_RETURN_IF_ERROR(reader.status());
  if (!parsed) return invalid_argument(path, ": not valid JSON");
  if (!out.root.is_object()) {
    return invalid_argument(path, ": expected a JSON object, found ", out.root.type_name());
  }
  return out;
}

StatusOr<json> read_optional_json(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return json();
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  json value = json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return invalid_argument(path, ": expected a JSON object");
  return value;
}

}  // namespace onepass
