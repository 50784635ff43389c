#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "base/source_dir.h"
#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/stop_string_matcher.h"
#include "tokenizer/token_bytes.h"
#include "tokenizer/unicode.h"

namespace onepass {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFolder = source_dir() / "tests/golden/tokenizers";

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string from_base64(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (char c : text) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
    count += 6;
    if (count >= 8) out += static_cast<char>(bits >> (count -= 8) & 0xff);
  }
  return out;
}

// Hard texts, then ill-formed ones as bytes (tools/make_tokenizer_golden.py).
std::vector<std::string> texts() {
  const json file = json::parse(read(kFolder / "texts.json"));
  std::vector<std::string> result = file["texts"];
  for (const json& encoded : file["invalid"]) result.push_back(from_base64(encoded.get<std::string>()));
  return result;
}

class TokenizerFamily : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::load((kFolder / GetParam()).string());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    expected_ = json::parse(read(kFolder / GetParam() / "expected.json"));
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json expected_;
};

INSTANTIATE_TEST_SUITE_P(Families, TokenizerFamily,
                         testing::Values("gpt2", "llama3", "qwen2", "sentencepiece", "sentencepiece-metaspace"),
                         [](const auto& param_info) {
                           std::string name = param_info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(TokenizerFamily, GivesTheIdsOfTheTokenizersLibrary) {
  const std::vector<std::string> all = texts();
  ASSERT_EQ(all.size(), expected_["cases"].size());
  for (size_t i = 0; i < all.size(); ++i) {
    const json& expected = expected_["cases"][i];
    const std::vector<int32_t> plain = expected["ids"], special = expected.value("special", plain);
    EXPECT_EQ(*tokenizer_->encode(all[i], {.add_special_tokens = false}), plain)
        << "text " << i << ": " << all[i].substr(0, 80);
    EXPECT_EQ(*tokenizer_->encode(all[i]), special) << "text " << i << ": " << all[i].substr(0, 80);
  }
}

TEST_P(TokenizerFamily, GivesTheTextsOfTheTokenizersLibrary) {
  for (const char* list : {"cases", "scrambled"}) {
    for (const json& expected : expected_[list]) {
      const std::vector<int32_t> plain = expected["ids"], ids = expected.value("special", plain);
      EXPECT_EQ(tokenizer_->decode(ids), expected["decoded"].get<std::string>()) << expected.dump().substr(0, 200);
      EXPECT_EQ(tokenizer_->decode(ids, /*skip_special_tokens=*/true), expected["skipped"].get<std::string>())
          << expected.dump().substr(0, 200);
    }
  }
}

TEST_P(TokenizerFamily, PiecesOfTextMakeUpTheWhole) {
  for (const char* list : {"cases", "scrambled"}) {
    for (const json& expected : expected_[list]) {
      const std::vector<int32_t> ids = expected["ids"];
      for (bool skip : {false, true}) {
        IncrementalDetokenizer detokenizer(*tokenizer_, skip);
        const std::string whole = tokenizer_->decode(ids, skip);
        const bool is_well_formed = whole.find(kReplacementCharacter) == std::string::npos;
        std::string text;
        for (size_t i = 0; i < ids.size(); ++i) {
          const std::string piece = detokenizer.push(ids[i]);
          EXPECT_TRUE(is_valid_utf8(piece)) << expected.dump().substr(0, 200);
          text += piece;
          // Nothing is held back but the beginning of a character.
          const std::string so_far = tokenizer_->decode(std::span(ids).first(i + 1), skip);
          if (is_well_formed && !so_far.ends_with(kReplacementCharacter)) {
            EXPECT_EQ(text, so_far) << "after token " << i << " of " << expected.dump().substr(0, 200);
          }
        }
        const std::string rest = detokenizer.flush();
        EXPECT_TRUE(is_valid_utf8(rest));
        text += rest;
        if (is_well_formed || tokenizer_->is_byte_level()) {
          EXPECT_EQ(text, whole) << expected.dump().substr(0, 200);
        }
      }
    }
  }
}

TEST_P(TokenizerFamily, SpecialTokensInTextAreTextWhenAsked) {
  const std::vector<int32_t> parsed = *tokenizer_->encode("<|special|>", {.add_special_tokens = false});
  const std::vector<int32_t> plain =
      *tokenizer_->encode("<|special|>", {.add_special_tokens = false, .parse_special_tokens = false});
  ASSERT_EQ(parsed.size(), 1u);
  EXPECT_TRUE(tokenizer_->is_special(parsed[0]));
  EXPECT_EQ(tokenizer_->token_to_id("<|special|>"), parsed[0]);
  EXPECT_EQ(tokenizer_->id_to_token(parsed[0]), "<|special|>");
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(tokenizer_->decode(plain), "<|special|>");
}

TEST(IncrementalDetokenizer, ReturnsByteTokensWhenTheyMakeUpCharacters) {
  const auto tokenizer = *Tokenizer::load((kFolder / "sentencepiece").string());
  const auto byte = [&](int value) {
    constexpr char kHex[] = "0123456789ABCDEF";
    const auto id = tokenizer->token_to_id(std::string("<0x") + kHex[value >> 4] + kHex[value & 15] + ">");
    return id ? *id : -1;
  };
  IncrementalDetokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.push(byte('\n')), "\n");
  EXPECT_EQ(detokenizer.push(byte('\n')), "\n");
  EXPECT_EQ(detokenizer.push(byte(0xE4)), "");
  EXPECT_EQ(detokenizer.push(byte(0xBD)), "");
  EXPECT_EQ(detokenizer.push(byte(0xA0)), "\xE4\xBD\xA0");
  // Bytes that make no character; what has been returned is not taken back.
  EXPECT_EQ(detokenizer.push(byte(0xFF)), "");
  EXPECT_EQ(detokenizer.push(byte('a')), "");
  EXPECT_EQ(detokenizer.flush(), "\uFFFD\uFFFD");
}

TEST(TokenBytes, TokensThatAreNoByteLevelTextStandForThemselves) {
  // "!" is a byte-level character; U+4F60 stands for no byte.
  Vocab vocab;
  vocab.add("!", 0);
  vocab.add("\u4f60", 1);
  const TokenBytes bytes(vocab);
  EXPECT_EQ(bytes[0], "!");
  EXPECT_EQ(bytes[1], "\u4f60");
  EXPECT_EQ(bytes[2], "");
  EXPECT_EQ(bytes[-1], "");
}

TEST(StopStringMatcher, FindsStopsAcrossPiecesAndHoldsBackTheirBeginnings) {
  StopStringMatcher matcher({"END", "ENDING", "xx"}, /*include_stop=*/false);
  EXPECT_EQ(matcher.push("hello E"), "hello ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("X x"), "ENX ");
  EXPECT_EQ(matcher.push("y EN"), "xy ");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.push("D tail"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.match(), "END");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.flush(), "");
  StopStringMatcher including({"b", "abc"}, /*include_stop=*/true);
  EXPECT_EQ(including.push("xxab"), "xxab");  // "abc" began first, but "b" is complete first
  EXPECT_EQ(including.match(), "b");
  StopStringMatcher late({"ab", "abc"}, /*include_stop=*/false);
  EXPECT_EQ(late.push("xab", /*may_match=*/false), "x");  // "abc" may still come, and then counts
  EXPECT_EQ(late.push("ab a", /*may_match=*/false), "abab ");
  EXPECT_EQ(late.push("b"), "");  // begun early, complete in time
  EXPECT_EQ(late.match(), "ab");
  StopStringMatcher longer({"ab", "abc"}, /*include_stop=*/true);
  EXPECT_EQ(longer.push("xab", /*may_match=*/false), "x");
  EXPECT_EQ(longer.push("cab"), "abc");
  EXPECT_EQ(longer.match(), "abc");
  StopStringMatcher none({}, false);
  EXPECT_EQ(none.push("all of it"), "all of it");
  StopStringMatcher held({"stop"}, false);
  EXPECT_EQ(held.push("non sto"), "non ");
  EXPECT_EQ(held.flush(), "sto");
}

// Damaged files give an error of one line or a tokenizer that works, never a crash.
TEST(TokenizerFuzz, SurvivesMutatedFiles) {
  std::mt19937 random(99);
  const fs::path dir = fs::path(testing::TempDir()) / ("onepass_tokenizer_fuzz_" + std::to_string(::getpid()));
  fs::create_directories(dir);
  const std::string hard = texts()[20] + "\xff" + texts()[18];
  int loaded = 0, refused = 0;
  for (const char* family : {"gpt2", "llama3", "qwen2", "sentencepiece", "sentencepiece-metaspace"}) {
    const std::string original = read(kFolder / family / "tokenizer.json");
    const json parsed = json::parse(original);
    for (int round = 0; round < 250; ++round) {
      std::string text;
      if (round % 2 == 0) {  // bytes
        text = original;
        for (int edit = 0; edit < 3; ++edit) {
          // Most of the file is vocabulary; the settings stand at its beginning.
          const size_t at = random() % (random() % 2 == 0 ? std::min<size_t>(text.size(), 3000) : text.size());
          switch (random() % 3) {
            case 0:
              text[at] = static_cast<char>(random());
              break;
            case 1:
              text.erase(at, random() % 20);
              break;
            default:
              text.insert(at, std::string(1, "{}[]\",:0-9nt"[random() % 12]));
          }
        }
      } else {  // values of the wrong type, at random places outside the tables
        json changed = parsed;
        json* place = &changed;
        for (int depth = 0; depth < 6 && (place->is_object() || place->is_array()) && !place->empty(); ++depth) {
          if (place->is_object() && place->size() > 50) break;
          if (place->is_array() && place->size() > 50) break;
          if (depth > 0 && random() % 4 == 0) break;
          auto it = place->begin();
          std::advance(it, random() % place->size());
          place = &*it;
        }
        const json values[] = {nullptr,
                               -1,
                               1e300,
                               "x",
                               json::array(),
                               json::object(),
                               true,
                               json::array({1, "a", nullptr}),
                               4294967296,
                               json{{"type", "Sequence"}},
                               json{{"type", "Strip"}},
                               json{{"Regex", "(((("}},
                               json{{"Regex", "(a*)*b"}}};
        *place = values[random() % std::size(values)];
        text = changed.dump();
      }
      std::ofstream(dir / "tokenizer.json", std::ios::binary) << text;
      const auto tokenizer = Tokenizer::load(dir.string());
      if (!tokenizer.ok()) {
        EXPECT_EQ(tokenizer.status().message().find('\n'), std::string::npos) << tokenizer.status();
        ++refused;
        continue;
      }
      ++loaded;
      const auto ids = (*tokenizer)->encode(hard);
      if (ids.ok()) (*tokenizer)->decode(*ids);
    }
  }
  fs::remove_all(dir);
  EXPECT_GT(loaded, 50);
  EXPECT_GT(refused, 50);
}

TEST(Tokenizer, ErrorsNameTheFileAndTheThing) {
  const fs::path dir = fs::path(testing::TempDir()) / ("onepass_tokenizer_test_" + std::to_string(::getpid()));
  fs::create_directories(dir);
  const auto message = [&](const std::string& text) {
    std::ofstream(dir / "tokenizer.json", std::ios::binary) << text;
    const std::string status(Tokenizer::load(dir.string()).status().message());
    return status.substr(std::min(status.size(), (dir / "tokenizer.json").string().size()));
  };
  EXPECT_EQ(message(R"({"model": {"type": "Unigram", "vocab": [], "merges": []}})").substr(0, 20),
            ": model: type: expec");
  EXPECT_NE(message("{").find("JSON"), std::string::npos);
  EXPECT_NE(message("[]").find("object"), std::string::npos);
  EXPECT_NE(message(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})").find("merges"),
            std::string::npos);
  EXPECT_NE(
      message(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": {"type": "Precompiled"}})")
          .find("found \"Precompiled\""),
      std::string::npos);
  EXPECT_EQ(message(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 7, "c": 1, "d": 7}, "merges": []}})"),
            ": model.vocab: 'b' and 'd': expected an id each, found 7 for both");
  const std::string pattern = std::string(50, 'x') + std::string(100000, '(');
  const std::string refused = message(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
      "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ")" +
                                      pattern + R"("}, "behavior": "Isolated"}})");
  EXPECT_NE(refused.find("regular expression '" + pattern.substr(0, 80) + "...': "), std::string::npos) << refused;
  EXPECT_LT(refused.size(), 250u);
  fs::remove_all(dir);
  EXPECT_EQ(Tokenizer::load("/nonexistent").status().message(),
            "/nonexistent/tokenizer.json: No such file or directory");
}

// Ten replacements of one letter by ten would make 10^10 of it.
TEST(Tokenizer, ANormalizerThatGrowsWithoutEndIsAnError) {
  const fs::path dir = fs::path(testing::TempDir()) / ("onepass_normalizer_test_" + std::to_string(::getpid()));
  fs::create_directories(dir);
  std::string steps;
  for (int i = 0; i < 10; ++i) {
    steps +=
        (i > 0 ? "," : "") + std::string(R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"})");
  }
  std::ofstream(dir / "tokenizer.json") << R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
      "normalizer": {"type": "Sequence", "normalizers": [)"
                                        << steps << "]}}";
  const auto tokenizer = Tokenizer::load(dir.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_NE((*tokenizer)->encode("a", {}).status().message().find("the text grows to"), std::string::npos);
  fs::remove_all(dir);
}

}  // namespace
}  // namespace onepass
