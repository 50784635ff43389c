#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "base/source_dir.h"

namespace onepass {
namespace {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

const fs::path kFolder = source_dir() / "tests/golden/chat";

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

const ordered_json& golden() {
  static const ordered_json cases = ordered_json::parse(read(kFolder / "cases.json"));
  return cases;
}

StatusOr<std::string> render(const std::string& source, const ChatTemplate::Input& input, const ordered_json& tokens) {
  const auto parsed = ChatTemplate::parse(source, tokens);
  if (!parsed.ok()) return parsed.status();
  return (*parsed)->apply(input);
}

void expect_same(const ordered_json& expected, const StatusOr<std::string>& actual, const std::string& what) {
  if (expected.contains("error")) {
    EXPECT_FALSE(actual.ok()) << what << "\nexpected an error, found: " << *actual;
    if (!actual.ok()) {
      EXPECT_EQ(actual.status().message().find('\n'), std::string::npos) << what;
    }
  } else {
    ASSERT_TRUE(actual.ok()) << what << "\n" << actual.status();
    EXPECT_EQ(*actual, expected["expected"].get<std::string>()) << what;
  }
}

// One construct of the language at a time, against what Jinja2 gave (tools/make_chat_golden.py).
TEST(ChatTemplate, EveryConstructGivesWhatJinja2Gives) {
  for (const auto& test : golden()["cases"]) {
    const std::string source = test["template"];
    expect_same(test, render(source, {.variables = golden()["variables"]}, ordered_json::object()), source);
  }
}

// Templates in the manner of five model families, on conversations with system messages, tools, calls and faults.
TEST(ChatTemplate, ConversationsGiveWhatJinja2Gives) {
  for (const auto& test : golden()["conversations"]) {
    const std::string name = test["template"];
    ChatTemplate::Input input{.variables = ordered_json::object()};
    for (const auto& [key, value] : test["input"].items()) {
      if (key == "messages") {
        input.messages = value;
      } else if (key == "tools") {
        input.tools = value;
      } else if (key == "add_generation_prompt") {
        input.add_generation_prompt = value;
      } else {
        input.variables[key] = value;
      }
    }
    const ordered_json tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    expect_same(test, render(read(kFolder / name), input, tokens), name + " " + test["input"].dump());
  }
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  const auto message = [](const std::string& source) {
    return std::string(render(source, {}, ordered_json::object()).status().message());
  };
  EXPECT_EQ(message("a\nb {{ 1 / 0 }}"), "chat template: line 2: division by zero");
  EXPECT_EQ(message("{% if x %}"), "chat template: line 1: {% if %} without its end");
  EXPECT_EQ(message("\n\n{{ raise_exception('Roles must alternate') }}"),
            "chat template: line 3: Roles must alternate");
  EXPECT_EQ(message("{{ x | nope }}"), "chat template: line 1: no filter named \"nope\"");
}

TEST(ChatTemplate, HostileTemplatesEnd) {
  const auto fails = [](const std::string& source) { return !render(source, {}, ordered_json::object()).ok(); };
  EXPECT_TRUE(fails("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"));
  EXPECT_TRUE(fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"));
  EXPECT_TRUE(fails("{{ 'aaaaaaaaaa' * 99999999999 }}"));
  EXPECT_TRUE(
      fails("{% set x = 'a' %}{% for i in range(99) %}{% set ns = namespace(x=x * 2) %}{{ 'aaaaaaaa' * 9999999 }}{% "
            "endfor %}"));
  for (const char* start : {"'ab'", "['ab']"}) {
    EXPECT_TRUE(fails(std::string("{% set ns = namespace(x=") + start +
                      ") %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"));
    EXPECT_TRUE(fails(std::string("{% set ns = namespace(x=") + start +
                      " * 600000) %}{% for i in range(99999) %}{% set ns.x = ns.x + ['b'] if i < 0 else ns.x + " +
                      start + " %}{% endfor %}"));
  }
  // Values nested without end, by way of a namespace, and namespaces that hold themselves.
  for (const char* grow :
       {"[ns.x]", "{'a': ns.x}", "(ns.x,)", "ns.x|batch(1)|list", "dict(a=ns.x)", "namespace(a=ns)", "ns", "[ns]"}) {
    EXPECT_TRUE(fails(std::string("{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ") + grow +
                      " %}{% endfor %}"))
        << grow;
  }
  // Few parts with many paths.
  for (const char* use : {"ns.x|tojson", "ns.x|string", "ns.x == ns.y", "ns.x in [ns.y]"}) {
    EXPECT_TRUE(
        fails(std::string("{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] "
                          "%}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{% if ") +
              use + " %}{% endif %}"))
        << use;
  }
  EXPECT_EQ(*render("{{ (-1) ** 9223372036854775807 }}{{ '' * 9223372036854775807 }}{{ [] * 9223372036854775807 }}", {},
                    ordered_json::object()),
            "-1[]");
  EXPECT_TRUE(fails("{{ range(99999)|map('string')|unique|list|length }}"));
  EXPECT_TRUE(fails("{% for i in range(99999) %}{{ range(99999)|list|sort(reverse=true)|length }}{% endfor %}"));
  EXPECT_TRUE(fails("{{ 'a' * 9000000 in 'a' * 16000000 ~ 'b' }}{{ 1 / 0 }}"));  // in linear time
  EXPECT_TRUE(fails("{{ " + std::string(100000, '(')));
  EXPECT_TRUE(fails("{{ " + std::string(100000, '[')));
  EXPECT_TRUE(fails("{{ " + std::string(100000, '-') + "1 }}"));
  std::string nested;
  for (int i = 0; i < 100000; ++i) nested += "{% if t %}";
  EXPECT_TRUE(fails(nested));
  std::string filters = "{{ 1";
  for (int i = 0; i < 100000; ++i) filters += "|abs";
  EXPECT_TRUE(fails(filters + " }}"));
}

// Broken templates give an error or a text, never a crash.
TEST(ChatTemplate, SurvivesMutations) {
  std::mt19937 random(20240817);
  std::vector<std::string> sources;
  for (const auto& test : golden()["cases"]) sources.push_back(test["template"]);
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".jinja") sources.push_back(read(entry.path()));
  }
  const std::string pieces[] = {"{{", "}}", "{%",  "%}",     "(",  ")",     "[", "|", ".",
                                "'",  "-",  "for", "endfor", "if", "endif", "~", "1", "\n"};
  ChatTemplate::Input input{.messages = golden()["conversations"][3]["input"]["messages"],
                            .variables = golden()["variables"]};
  int rendered = 0;
  for (int round = 0; round < 6000; ++round) {
    std::string source = sources[random() % sources.size()];
    for (uint32_t edit = 0; edit <= random() % 3; ++edit) {
      const size_t at = random() % (source.size() + 1);
      switch (random() % 3) {
        case 0:
          source.erase(at, random() % 6);
          break;
        case 1:
          source.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          source.insert(at, sources[random() % sources.size()].substr(0, random() % 40));
      }
    }
    rendered += render(source, input, ordered_json::object()).ok();
  }
  EXPECT_GT(rendered, 100);
}

TEST(ChatTemplate, IsFoundInTheFolderByTheRules) {
  const fs::path dir = fs::path(testing::TempDir()) / ("onepass_chat_template_test_" + std::to_string(::getpid()));
  fs::create_directories(dir);
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(dir / name) << text; };
  const auto apply = [&](const ordered_json& tools) -> std::string {
    const auto loaded = ChatTemplate::load(dir.string());
    if (!loaded.ok()) return std::string(loaded.status().message());
    if (*loaded == nullptr) return "none";
    const auto text = (*loaded)->apply({.messages = ordered_json::array(), .tools = tools});
    return text.ok() ? *text : std::string(text.status().message());
  };
  EXPECT_EQ(apply(nullptr), "none");
  write(
      "tokenizer_config.json",
      R"({"chat_template": "A{{ bos_token }}{{ eos_token }}", "bos_token": "<s>", "eos_token": {"content": "</s>"}})");
  EXPECT_EQ(apply(nullptr), "A<s></s>");
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}]})");
  EXPECT_EQ(apply(nullptr), "D");
  EXPECT_EQ(apply(ordered_json::array({1, 2})), "T2");
  write("chat_template.jinja", "FILE");
  EXPECT_EQ(apply(nullptr), "FILE");
  fs::remove(dir / "chat_template.jinja");
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_NE(apply(nullptr).find("expected a string or a list"), std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": )");
  EXPECT_NE(apply(nullptr).find("expected a JSON object"), std::string::npos);
  fs::remove_all(dir);
}

}  // namespace
}  // namespace onepass
