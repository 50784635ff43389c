// The bundled models against what transformers makes of them (tools/make_golden_demo.py): ids, perplexity, greedy text.
#include <cmath>
#include <nlohmann/json.hpp>

#include "command_line.h"

namespace onepass {
namespace {

class DemoModel : public CommandLineTest, public testing::WithParamInterface<std::string> {
 protected:
  DemoModel() {
    const std::filesystem::path folder = source_dir() / "tests/golden/demo";
    text_ = (folder / "eval.txt").string();
    golden_ = nlohmann::json::parse(read_file(folder / (GetParam() + ".json")));
  }

  nlohmann::json run_json(const std::string& command, const std::string& arguments) {
    const CommandResult result = run(command + " --model " + bundled_model(GetParam()) + " --json " + arguments);
    EXPECT_EQ(result.exit_status, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  }

  // Relative difference of the perplexities.
  void expect_perplexity(const std::string& arguments, const char* expected, double bound) {
    const nlohmann::json output = run_json("perplexity", "--file " + text_ + " " + arguments);
    ASSERT_TRUE(output.is_object());
    EXPECT_EQ(output["tokens"], golden_["tokens"]);
    const double reference = golden_[expected];
    EXPECT_NEAR(output["perplexity"].get<double>() / reference, 1.0, bound) << arguments;
  }

  std::string text_;
  nlohmann::json golden_;
};

INSTANTIATE_TEST_SUITE_P(Models, DemoModel, testing::Values("shakespeare-5m", "shakespeare-1m"),
                         [](const auto& param_info) { return param_info.param.substr(param_info.param.size() - 2); });

TEST_P(DemoModel, HasThePerplexityOfTransformers) {
  expect_perplexity("", "perplexity", 0.005);
  expect_perplexity("--window " + std::to_string(golden_["short_context"].get<int>()), "perplexity_short_context",
                    0.005);
  expect_perplexity("--page-size 1 --chunk-size 7", "perplexity", 0.005);
  // Without bf16 dot products, and with K and V in float32, nothing is rounded that transformers does not round.
  expect_perplexity("--isa portable --kv-dtype float32", "perplexity", 1e-5);
}

TEST_P(DemoModel, WritesTheGreedyTextOfTransformers) {
  const std::vector<int32_t> expected = golden_["greedy_ids"];
  const std::vector<float> margins = golden_["greedy_margins"];
  const std::string prompt = golden_["greedy_prompt"];
  const nlohmann::json output =
      run_json("generate", "--quiet --greedy --isa portable --kv-dtype float32 --ignore-eos --prompt '" + prompt +
                               "' --max-tokens " + std::to_string(expected.size()));
  ASSERT_TRUE(output.is_object());
  EXPECT_EQ(output["usage"]["prompt_tokens"], golden_["greedy_prompt_ids"].size());
  const std::vector<int32_t> actual = output["token_ids"];
  ASSERT_EQ(actual.size(), expected.size());
  // In float32 both compute the same numbers but for the order of sums, about 1e-5 of a logit.
  EXPECT_GT(*std::min_element(margins.begin(), margins.end()), 1e-4f) << "the golden text hangs on rounding";
  EXPECT_EQ(actual, expected);
  EXPECT_EQ(output["text"], golden_["greedy_text"]);
}

}  // namespace
}  // namespace onepass
