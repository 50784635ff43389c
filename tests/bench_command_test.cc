// bench throughput as a user meets it: what fits the context and the KV cache, and what is refused.
#include <nlohmann/json.hpp>

#include "command_line.h"

namespace onepass {
namespace {

using nlohmann::json;

class BenchCommandTest : public CommandLineTest {
 protected:
  CommandResult bench(const std::string& arguments) {
    return run("bench throughput --model " + bundled_model("shakespeare-1m") + " " + arguments);
  }

  json bench_json(const std::string& arguments) {
    const CommandResult result = bench(arguments + " --json");
    EXPECT_EQ(result.exit_status, 0) << arguments << ": " << result.err;
    return json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  }

  // One line, of the error alone.
  void expect_refused(const std::string& arguments, int exit_status, const std::string& message) {
    const CommandResult result = bench(arguments);
    EXPECT_EQ(result.exit_status, exit_status) << arguments;
    EXPECT_EQ(result.out, "") << arguments;
    EXPECT_EQ(result.err, "onepass: " + message + (exit_status == 2 ? " (--help says more)\n" : "\n")) << arguments;
  }
};

TEST_F(BenchCommandTest, DefaultsAreCutToWhatFits) {
  const std::string shared = "--dataset-name generated-shared-prefix --gsp-num-groups 1 --gsp-prompts-per-group 2 ";
  CommandResult result = bench(shared + "--json");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(
      result.err,
      "dataset: 1024 + 64 + 64 tokens by default, but the context holds 1024: --gsp-system-prompt-len cut to 896\n");
  EXPECT_EQ(json::parse(result.out).at("total_input_tokens").get<int>(), 2 * (896 + 64));
  result = bench(shared + "--context-length 100 --gsp-system-prompt-len 50 --json");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("--gsp-question-len cut to 1, --gsp-output-len cut to 49"), std::string::npos)
      << result.err;
  EXPECT_EQ(json::parse(result.out).at("total_output_tokens").get<int>(), 2 * 49);
  expect_refused(shared + "--gsp-system-prompt-len 1024", 1,
                 "dataset: a request of 1024 + 64 + 64 tokens, more than the context of 1024");
  EXPECT_EQ(bench_json("--num-prompts 2 --context-length 100").at("total_output_tokens").get<int>(), 2 * 99);
}

TEST_F(BenchCommandTest, LongConversationsAreLeftOut) {
  const std::string path = (dir_ / "chats.json").string();
  const auto chat = [](const std::string& prompt, const std::string& answer) {
    return json{{"id", "x"}, {"conversations", {{{"value", prompt}}, {{"value", answer}}, {{"value", "more"}}}}};
  };
  std::string words;
  for (int i = 0; i < 3000; ++i) words += "love and war ";
  const json chats = {chat("What is love?", "A smoke made with the fume of sighs."),
                      chat(words, "Too long a question."),
                      chat("Too long an answer.", words),
                      chat("What is war?", "A thing of the past, good friend."),
                      chat("?", ""),
                      json::object(),
                      json{{"conversations", {{{"value", "alone"}}}}},
                      json{{"conversations", {1, {{"value", 2}}}}},
                      7};
  write_file(path, chats.dump());
  const std::string sharegpt = "--dataset-name sharegpt --dataset-path " + path;
  CommandResult result = bench(sharegpt + " --json");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.err, path + ": conversations left out: 2 of more than 1024 tokens\n");
  EXPECT_EQ(json::parse(result.out).at("successful_requests").get<int>(), 2);
  EXPECT_EQ(bench_json(sharegpt + " --num-prompts 1").at("successful_requests").get<int>(), 1);
  // What the KV cache cannot hold is too long, too.
  result = bench(sharegpt + " --kv-tokens 8 --page-size 4");
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("conversations left out: 4 of more than 8 tokens"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("onepass: " + path + ": no conversation of a fitting length"), std::string::npos);
  write_file(path, "{}");
  expect_refused(sharegpt, 1, path + ": expected a JSON list of conversations");
  write_file(path, "[{]");
  EXPECT_EQ(bench(sharegpt).exit_status, 1);
}

TEST_F(BenchCommandTest, TheWarmUpTakesNoMoreThanThereIs) {
  const std::string one_token = "--num-prompts 3 --random-input-len 1 --random-output-len 1 ";
  for (const char* length : {"2", "3", "7", "8", "67", "68"}) {
    const json result = bench_json(one_token + "--context-length " + length);
    EXPECT_EQ(result.at("total_output_tokens").get<int>(), 3) << length;
  }
  for (const char* tokens : {"2", "3", "20", "68"}) {
    const json result = bench_json(one_token + "--page-size 1 --kv-tokens " + tokens);
    EXPECT_EQ(result.at("total_output_tokens").get<int>(), 3) << tokens;
  }
  EXPECT_EQ(bench_json("--num-prompts 3 --random-input-len 10 --random-output-len 5 --page-size 4 --kv-tokens 20")
                .at("total_output_tokens")
                .get<int>(),
            15);
  expect_refused(one_token + "--context-length 1", 1, "dataset: a request of 1 + 1 tokens, more than the context of 1");
}

TEST_F(BenchCommandTest, NoAnswerIsCutShort) {
  const std::string lengths = "--num-prompts 3 --random-input-len 10 --random-output-len 10 --page-size 4 --kv-tokens ";
  expect_refused(lengths + "16", 1, "dataset: a request of 10 + 10 tokens, more than the KV cache of 16");
  const json result = bench_json(lengths + "20");
  EXPECT_EQ(result.at("total_output_tokens").get<int>(), 30);
  EXPECT_EQ(result.at("successful_requests").get<int>(), 3);
  EXPECT_EQ(result.at("incomplete_requests").get<int>(), 0);
}

TEST_F(BenchCommandTest, SizesAreCheckedBeforeMemoryIsFilled) {
  expect_refused("--random-input-len 16777216 --num-prompts 200", 1,
                 "dataset: a request of 16777216 + 128 tokens, more than the context of 1024");
  expect_refused("--num-prompts 1000000", 1,
                 "dataset: 1000000 requests of 640 tokens each, expected at most 1000000 requests and 268435456 tokens "
                 "in all");
  const std::string shared = "--dataset-name generated-shared-prefix --gsp-system-prompt-len 1 --gsp-question-len 1 ";
  expect_refused(shared + "--gsp-output-len 1 --gsp-num-groups 16777216 --gsp-prompts-per-group 16777216", 1,
                 "dataset: 281474976710656 requests of 3 tokens each, expected at most 1000000 requests and 268435456 "
                 "tokens in all");
  EXPECT_EQ(bench("--num-prompts 1000001").exit_status, 2);
}

TEST_F(BenchCommandTest, OptionsOfAnotherDatasetAreRefused) {
  expect_refused("--dataset-path x", 2, "--dataset-path: expected --dataset-name sharegpt, found random");
  expect_refused("--gsp-output-len 3", 2,
                 "--gsp-output-len: expected --dataset-name generated-shared-prefix, found random");
  expect_refused("--dataset-name sharegpt --dataset-path x --random-range-ratio 0.5", 2,
                 "--random-range-ratio: expected --dataset-name random, found sharegpt");
  expect_refused("--dataset-name generated-shared-prefix --num-prompts 5", 2,
                 "--num-prompts: expected --dataset-name random or sharegpt, found generated-shared-prefix");
  expect_refused("--isa abacus", 2,
                 "instruction set: expected auto, portable, avx2, avx512 or avx512bf16, found \"abacus\"");
}

TEST_F(BenchCommandTest, PrintsWhatItsPeersPrint) {
  const CommandResult result = bench("--num-prompts 3 --random-input-len 20 --random-output-len 50");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* field :
       {" Offline Throughput Benchmark Result ", "\nBackend: ", "\nSuccessful requests: ", "\nBenchmark duration (s): ",
        "\nTotal input tokens: ", "\nTotal generated tokens: ", "\nLast generation throughput (tok/s): ",
        "\nRequest throughput (req/s): ", "\nInput token throughput (tok/s): ", "\nOutput token throughput (tok/s): ",
        "\nTotal token throughput (tok/s): ", "\nThroughput: ", " requests/s, ", " total tokens/s, ",
        " output tokens/s\n", "\nTotal num prompt tokens:  60\n", "\nTotal num output tokens:  150\n"}) {
    EXPECT_NE(result.out.find(field), std::string::npos) << field;
  }
  const json fields = bench_json("--num-prompts 3 --random-input-len 20 --random-output-len 50");
  EXPECT_EQ(fields.at("backend").get<std::string>(), "onepass");
  EXPECT_EQ(fields.at("num_requests").get<int>(), 3);
  EXPECT_EQ(fields.at("total_num_tokens").get<int>(), 210);
  EXPECT_EQ(fields.at("elapsed_time"), fields.at("total_latency"));
  EXPECT_EQ(fields.at("requests_per_second"), fields.at("request_throughput"));
  EXPECT_EQ(fields.at("tokens_per_second"), fields.at("total_throughput"));
  EXPECT_GT(fields.at("last_gen_throughput").get<double>(), 0.0);
}

}  // namespace
}  // namespace onepass
