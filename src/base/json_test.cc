#include "base/json.h"

#include <gtest/gtest.h>

namespace onepass {
namespace {

TEST(Json, ParsesAndPrints) {
  const auto value = parse_json("x.json", R"({"a": [1, 2.5, "t\u00e9xt"]})");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ((*value)["a"][0], 1);
  EXPECT_EQ(json_excerpt(*value), R"({"a":[1,2.5,"t\u00e9xt"]})");
  EXPECT_EQ(json_excerpt(*value, 8), R"({"a":[1,...)");
}

TEST(Json, ErrorsAreOneLineThatNamesPlaceAndFinding) {
  const auto message = [](std::string_view text) { return std::string(parse_json("x.json", text).status().message()); };
  for (std::string_view text : {"", "{", "{\"a\": NaN}", "[1,]", "{\"a\"\n 1}", "\"\xff\"", "1e999", "[\"\n\"]"}) {
    EXPECT_EQ(message(text).rfind("x.json: expected JSON, found ", 0), 0u) << message(text);
    EXPECT_EQ(message(text).find('\n'), std::string::npos) << message(text);
    EXPECT_LT(message(text).size(), 260u);
  }
  EXPECT_NE(message("{\n\"a\": NaN}").find("line 2, column 6"), std::string::npos) << message("{\n\"a\": NaN}");
}

TEST(Json, RefusesDeepNesting) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_json("x.json", nested(kMaxJsonDepth)).ok());
  EXPECT_EQ(parse_json("x.json", nested(kMaxJsonDepth + 1)).status().message(),
            "x.json: expected JSON nested at most 64 deep, found 65");
  EXPECT_FALSE(parse_json("x.json", nested(1'000'000)).ok());
  // Brackets in strings are text.
  EXPECT_TRUE(parse_json("x.json", "[\"\\\"" + std::string(1000, '[') + "\"]").ok());
}

TEST(Strings, PrintableKeepsToOneLine) {
  EXPECT_EQ(printable("model.layers.0"), "model.layers.0");
  EXPECT_EQ(printable("a\nb\xff"), "a\\nb\\xff");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
}

}  // namespace
}  // namespace onepass
