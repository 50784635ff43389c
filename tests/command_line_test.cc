// The program as a user meets it: exit status, stdout, and one line of error that names the thing.
#include "command_line.h"

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

namespace onepass {
namespace {

namespace fs = std::filesystem;

class CliTest : public CommandLineTest {
 protected:
  // A copy of the bundled model, to be damaged.
  fs::path copy_model() {
    fs::path copy = dir_ / "model";
    fs::remove_all(copy);
    fs::copy(model_, copy, fs::copy_options::recursive);
    return copy;
  }

  void expect_damaged(const fs::path& model, const std::string& expected) {
    expect_error("generate --model " + model.string() + " --prompt ROMEO: --max-tokens 2", expected);
  }

  const std::string model_ = bundled_model("shakespeare-5m");
};

TEST_F(CliTest, GeneratesTheSameTextForTheSameSeed) {
  const std::string command = "generate --model " + model_ + " --prompt 'ROMEO:' --max-tokens 40 --seed 1";
  const CommandResult first = run(command), second = run(command);
  EXPECT_EQ(first.exit_status, 0) << first.err;
  EXPECT_EQ(first.out.rfind("ROMEO:", 0), 0u);
  EXPECT_GT(first.out.size(), 60u);
  EXPECT_EQ(first.out, second.out);
  EXPECT_NE(first.out, run("generate --model " + model_ + " --prompt 'ROMEO:' --max-tokens 40 --seed 2").out);
  for (const char* word : {"prefill", "decode", "tok/s", "pages", "cpu"}) {
    EXPECT_NE(first.err.find(word), std::string::npos) << first.err;
  }
}

TEST_F(CliTest, AnswersDoNotDependOnHowTheyAreComputed) {
  const std::string command =
      "generate --model " + model_ + " --prompt 'KING RICHARD: Now is the winter' --max-tokens 30 --greedy --quiet";
  const CommandResult expected = run(command);
  EXPECT_EQ(expected.exit_status, 0) << expected.err;
  EXPECT_EQ(expected.err, "");
  for (const char* option : {"--attention reference", "--page-size 1", "--page-size 256", "--chunk-size 3",
                             "--threads 1", "--kv-dtype float32 --attention reference"}) {
    EXPECT_EQ(run(command + " " + option).out, expected.out) << option;
  }
}

TEST_F(CliTest, JsonHoldsTextUsageAndLogprobs) {
  const CommandResult result =
      run("generate --model " + model_ + " --prompt 'ROMEO:' --max-tokens 5 --greedy --json --quiet --logprobs 3");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const auto output = nlohmann::json::parse(result.out);
  EXPECT_EQ(output["usage"]["completion_tokens"], 5);
  EXPECT_EQ(output["finish_reason"], "length");
  ASSERT_EQ(output["logprobs"].size(), 5u);
  for (const auto& token : output["logprobs"]) {
    ASSERT_EQ(token["top_logprobs"].size(), 3u);
    EXPECT_EQ(token["top_logprobs"][0]["token_id"], token["token_id"]);  // greedy takes the likeliest
    EXPECT_LE(token["logprob"].get<float>(), 0.0f);
  }
}

TEST_F(CliTest, StopStringsAndStopTokensEndTheAnswer) {
  const std::string command =
      "generate --model " + model_ + " --prompt 'ROMEO:' --max-tokens 60 --greedy --json --quiet";
  const auto whole = nlohmann::json::parse(run(command).out);
  const std::string text = whole["text"];
  ASSERT_GT(text.size(), 20u);
  const std::string stop = text.substr(10, 4);
  const auto stopped = nlohmann::json::parse(run(command + " --stop '" + stop + "'").out);
  EXPECT_EQ(stopped["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["matched_stop"], stop);
  const auto included = nlohmann::json::parse(run(command + " --include-stop-str --stop '" + stop + "'").out);
  EXPECT_EQ(included["text"], text.substr(0, text.find(stop) + stop.size()));
  const int token = whole["token_ids"][7];
  const auto by_token = nlohmann::json::parse(run(command + " --stop-token-id " + std::to_string(token)).out);
  EXPECT_EQ(by_token["finish_reason"], "stop");
  EXPECT_LE(by_token["token_ids"].size(), 8u);
  EXPECT_EQ(by_token["token_ids"].back(), token);
}

// As in vLLM: what is complete within the first --min-tokens tokens is text like any other.
TEST_F(CliTest, StopStringsWaitForTheLeastNumberOfTokens) {
  const std::string command = "generate --model " + model_ + " --prompt 'ROMEO:' --greedy --json --quiet";
  const std::string text = nlohmann::json::parse(run(command + " --max-tokens 80").out)["text"];
  const std::string beginning = nlohmann::json::parse(run(command + " --max-tokens 30").out)["text"];
  ASSERT_EQ(text.rfind(beginning, 0), 0u);
  const size_t end = text.find('e', beginning.size());
  ASSERT_LT(text.find('e'), beginning.size());
  ASSERT_NE(end, std::string::npos);
  const auto stopped = nlohmann::json::parse(run(command + " --max-tokens 80 --min-tokens 30 --stop e").out);
  EXPECT_EQ(stopped["text"], text.substr(0, end));
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["matched_stop"], "e");
  EXPECT_GT(stopped["token_ids"].size(), 30u);
  const auto never = nlohmann::json::parse(run(command + " --max-tokens 80 --min-tokens 80 --stop e").out);
  EXPECT_EQ(never["text"], text);
  EXPECT_EQ(never["finish_reason"], "length");
}

TEST_F(CliTest, ThePromptMayComeThroughAPipe) {
  const fs::path pipe = dir_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string command = "--model " + model_ + " --max-tokens 5 --greedy --quiet";
  std::thread writer([&] { write_file(pipe, "ROMEO:"); });
  const CommandResult result = run("generate " + command + " --prompt-file " + pipe.string());
  writer.join();
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.out, run("generate " + command + " --prompt ROMEO:").out);
  expect_error("generate --model " + model_ + " --prompt-file /dev/zero", "/dev/zero: more than the 67108864 bytes");
  expect_error("generate --model " + model_ + " --prompt-file /dev/null", "/dev/null: expected text, found none");
}

TEST_F(CliTest, TheSummaryCountsTheTokensThatItTimes) {
  const std::string command = "generate --model " + model_ + " --prompt 'ROMEO:' --greedy --ignore-eos --max-tokens ";
  for (const auto& [count, expected] : {std::pair("1", "decode   0 tokens after the first in "),
                                        std::pair("12", "decode   11 tokens after the first in ")}) {
    const CommandResult result = run(command + count);
    EXPECT_NE(result.err.find(expected), std::string::npos) << result.err;
    const size_t line = result.err.find(expected);
    double milliseconds = 0, rate = 0;
    int tokens = 0;
    ASSERT_EQ(std::sscanf(result.err.c_str() + line, "decode %d tokens after the first in %lf ms, %lf tok/s", &tokens,
                          &milliseconds, &rate),
              3);
    EXPECT_NEAR(rate * milliseconds / 1e3, tokens, 0.05 * tokens + 0.01 * rate) << result.err;
  }
}

// A conversation outlives its context: the oldest turns go, the system message stays.
TEST_F(CliTest, ChatForgetsTheOldestTurnsWhenTheContextIsFull) {
  const fs::path model = copy_model();
  write_file(model / "chat_template.jinja",
             "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:");
  const std::string command = "chat --model " + model.string() +
                              " --system 'Speak.' --greedy --ignore-eos --context-length 96 --max-tokens 8 --seed 1";
  std::string input;
  for (int turn = 0; turn < 12; ++turn) input += "What say you, good my lord, of the war?\n";
  const CommandResult result = run(command, input);
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_GE(std::count(result.out.begin(), result.out.end(), '\n'), 12) << result.out;
  EXPECT_NE(result.err.find("The context of 96 tokens is full: forgot the oldest turn.\n"), std::string::npos)
      << result.err;
  const CommandResult one = run(command, "What say you, good my lord, of the war?\n");
  EXPECT_EQ(one.err, "");
  EXPECT_EQ(result.out.rfind(one.out, 0), 0u);
  // A message that does not fit by itself has no answer.
  const CommandResult long_message = run(command, "Ay.\n" + std::string(2000, 'x') + "\n");
  EXPECT_EQ(long_message.exit_status, 1);
  EXPECT_NE(long_message.err.find("but the context of 96 holds"), std::string::npos) << long_message.err;
}

TEST_F(CliTest, LogitsAreWrittenForEveryPosition) {
  const fs::path file = dir_ / "logits.safetensors";
  const CommandResult result =
      run("logits --model " + model_ + " --input-ids 1,2,3,4,5 --output " + file.string() + " --chunk-size 2");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const std::string bytes = read_file(file);
  ASSERT_GT(bytes.size(), 8u);
  uint64_t header_size = 0;
  std::copy_n(bytes.data(), 8, reinterpret_cast<char*>(&header_size));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  EXPECT_EQ(header["logits"]["dtype"], "F32");
  EXPECT_EQ(header["logits"]["shape"][0], 5);
  const int64_t vocab_size = header["logits"]["shape"][1];
  EXPECT_EQ(bytes.size(), 8 + header_size + 5 * vocab_size * 4);
}

// The weights are mapped while the logits are written: the file is put in its place in the end.
TEST_F(CliTest, LogitsOverTheModelsOwnFileHarmNothing) {
  const fs::path model = copy_model();
  const CommandResult result =
      run("logits --model " + model.string() + " --input-ids 1,2 --output " + (model / "model.safetensors").string());
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(read_file(model / "model.safetensors").substr(8).rfind("{\"logits\"", 0), 0u);
  EXPECT_FALSE(fs::exists(model / "model.safetensors.unfinished"));
  expect_error("logits --model " + model_ + " --input-ids 1,99999999 --output " + (dir_ / "never").string(),
               "token id");
  EXPECT_FALSE(fs::exists(dir_ / "never") || fs::exists(dir_ / "never.unfinished"));
}

TEST_F(CliTest, UsageErrorsExitWithTwo) {
  expect_error("", "subcommand", 2);
  expect_error("frob", "no such command or option: frob", 2);
  expect_error("frob --model x", "no such command or option: frob", 2);
  expect_error("--frob", "no such command or option: --frob", 2);
  expect_error("bench frob", "no such command or option: frob", 2);
  expect_error("generate --frob", "no such command or option: --frob", 2);
  expect_error("generate --model " + model_ + " --prompt x frob", "frob", 2);
  expect_error("generate --prompt x", "--model", 2);
  expect_error("generate --model " + model_ + " --prompt x --page-size 0", "page-size", 2);
  expect_error("generate --model " + model_ + " --prompt x --page-size 257", "page-size", 2);
  expect_error("generate --model " + model_ + " --prompt x --max-tokens -5", "max-tokens", 2);
  expect_error("generate --model " + model_ + " --prompt x --max-tokens many", "max-tokens", 2);
  expect_error("generate --model " + model_ + " --prompt x --no-such-option", "no-such-option", 2);
  expect_error("bench latency --model " + model_ + " --input-len -1", "input-len", 2);
  expect_error("ladder --seq 0", "seq", 2);
  expect_error("generate --model " + model_ + " --prompt x --seed -1", "--seed: expected 0 to 2^64 - 1, found -1", 2);
  expect_error("generate --model " + model_ + " --prompt x --logprobs 3", "--logprobs requires --json", 2);
  expect_error("generate --model " + model_ + " --prompt x --greedy --temperature 1", "excludes", 2);
  expect_error("generate --model '' --prompt x", "--model: expected a path", 2);
  expect_error("bench attention --seqlen-q 4", "--seqlen-q requires --heads", 2);
  for (const char* order : {"--workload decode --heads 4", "--heads 4 --workload all"}) {
    expect_error(std::string("bench attention --kv-heads 4 --head-dim 64 ") + order, "--workload excludes --heads", 2);
  }
  expect_error("generate --model " + model_ + " --prompt x --temperature ''", "--temperature: expected a number", 2);
  expect_error("generate --model " + model_ + " --prompt x --logit-bias '' 3", "--logit-bias: expected a number", 2);
  expect_error("logits --model " + model_ + " --input-ids '' --output " + (dir_ / "never").string() + "",
               "--input-ids: expected token ids", 2);
}

// What is wrong in the command line itself is status 2 before any file is opened: there is no model here.
TEST_F(CliTest, ValuesOutOfRangeExitWithTwo) {
  const std::string generate = "generate --model /nonexistent --prompt x ";
  for (const auto& [arguments, expected] : std::vector<std::pair<std::string, std::string>>{
           {"--temperature -1", "temperature: expected 0 or more, found -1"},
           {"--temperature nan", "temperature: expected 0 or more, found nan"},
           {"--top-k -1", "top_k: expected 0 (off) or more, found -1"},
           {"--top-p 0", "top_p: expected more than 0"},
           {"--top-p 1.5", "top_p: expected more than 0"},
           {"--min-p 2", "min_p: expected 0 to 1, found 2"},
           {"--repetition-penalty 0", "repetition_penalty: expected 0.01 to 100, found 0"},
           {"--repetition-penalty 1e-40", "repetition_penalty: expected 0.01 to 100, found "},
           {"--repetition-penalty inf", "repetition_penalty: expected 0.01 to 100, found inf"},
           {"--presence-penalty 3", "presence_penalty: expected -2 to 2, found 3"},
           {"--frequency-penalty -3", "frequency_penalty: expected -2 to 2, found -3"},
           {"--logit-bias 1 1e38", "logit_bias: expected -100 to 100, found 1e+38"},
           {"--logit-bias -1 1", "logit_bias: token id: expected 0 or more, found -1"},
           {"--stop-token-id -1", "--stop-token-id: Value -1 not in range"},
           {"--stop ''", "stop: expected strings that are not empty"},
           {"--min-tokens 9 --max-tokens 3", "min_new_tokens: expected 0 to max_new_tokens, found 9"},
           {"--logprobs 101 --json", "--logprobs: Value 101 not in range"},
           {"--device tpu", "device: expected cpu"},
           {"--device cuda:x", "device: expected cpu, cuda or cuda:N, found \"cuda:x\""},
           {"--mem-fraction 1.5", "--mem-fraction: Value 1.5 not in range"},
           {"--mem-fraction nan", "--mem-fraction: Value nan not in range"},
           {"--attention magic", "attention: expected flash or reference"},
           {"--kv-dtype int3", "dtype"},
           {"--isa mmx", "instruction set"}}) {
    expect_error(generate + arguments, expected, 2);
  }
  for (const auto& [arguments, expected] : std::vector<std::pair<std::string, std::string>>{
           {"generate --model /nonexistent", "--prompt: expected text, found none"},
           {"generate --model /nonexistent --prompt ''", "--prompt: expected text, found none"},
           {"chat --model /nonexistent --top-p 0", "top_p: expected more than 0"},
           {"chat --model /nonexistent --isa mmx", "instruction set"},
           {"logits --model /nonexistent --output x", "expected --input-ids or --prompt"},
           {"perplexity --model /nonexistent --file x --window 1", "--window: expected 0 or at least 2"},
           {"perplexity --model /nonexistent --file x --isa mmx", "instruction set"},
           {"inspect --model /nonexistent --kv-dtype int3", "dtype"},
           {"tokenize --model /nonexistent --chat x --var a", "--var: expected NAME=VALUE, found a"},
           {"ladder --score-deviation nan", "--score-deviation: Value nan not in range"},
           {"ladder --score-deviation inf", "--score-deviation: Value inf not in range"},
           {"bench attention --device cuda --heads 4 --kv-heads 4 --head-dim 64 --softcap nan",
            "--softcap: Value nan not in range"},
           {"bench attention --device cuda --heads 4 --kv-heads 4 --head-dim 64 --softcap inf",
            "--softcap: Value inf not in range"},
           {"bench attention --seconds nan", "--seconds: Value nan not in range"},
           {"bench linear --seconds nan", "--seconds: Value nan not in range"},
           {"bench throughput --model /nonexistent --random-range-ratio nan",
            "--random-range-ratio: Value nan not in range"},
           {"ladder --dtype fp8", "--dtype: fp8 not in"},
           {"bench latency --model /nonexistent --attention magic", "attention: expected flash or reference"},
           {"bench attention --device tpu", "device: expected cpu"},
           {"bench attention --isa mmx", "instruction set"},
           {"bench attention --page-size 0", "--page-size: expected at least 1 with --device cpu, found 0"},
           {"bench attention --device cuda --page-size 64", "--page-size: expected --heads too, or --device cpu"},
           {"bench attention --dtype int3", "dtype"},
           {"bench attention --heads 4 --kv-heads 3 --head-dim 8", "--kv-heads that divide them"}}) {
    expect_error(arguments, expected, 2);
  }
}

// An id that is missing from a list is not passed over.
TEST_F(CliTest, ListsOfTokenIdsHaveNoGaps) {
  for (const char* list : {"1,,2", ",1", "1,", ",", "1,x", "1 ,2", "1,-2", "99999999999", "0x1"}) {
    const std::string expected = std::string(": expected token ids separated by commas, found \"");
    expect_error("logits --model " + model_ + " --output " + (dir_ / "never").string() + " '--input-ids=" + list + "'",
                 "--input-ids" + expected, 2);
    expect_error("tokenize --model " + model_ + " '--decode=" + list + "'", "--decode" + expected, 2);
  }
  expect_error("tokenize --model " + model_ + " --decode 1,,2", "found \"\" in \"1,,2\"", 2);
  EXPECT_EQ(run("tokenize --model " + model_ + " --decode 40,41,42").out,
            run("tokenize --model " + model_ + " --decode 40,41 --decode 42").out);
}

// Results that cannot be written are not said to have been.
TEST_F(CliTest, AFullOutputIsAnError) {
  for (const std::string& command :
       {std::string("--help"), std::string("--version"), std::string("generate --help"), std::string("chat --help"),
        std::string("logits --help"), std::string("perplexity --help"), std::string("tokenize --help"),
        std::string("inspect --help"), std::string("ladder --help"), std::string("devices --help"),
        std::string("bench --help"), std::string("bench latency --help"), std::string("bench attention --help"),
        "generate --model " + model_ + " --prompt x --max-tokens 2", "tokenize --model " + model_ + " --text hello",
        "inspect --model " + model_, std::string("ladder --seq 64")}) {
    const CommandResult result = run(command + " >/dev/full");
    EXPECT_EQ(result.exit_status, 1) << command;
    EXPECT_NE(result.err.find("stdout: cannot write"), std::string::npos) << command << "\n" << result.err;
  }
}

TEST_F(CliTest, BadRequestsAreOneLine) {
  expect_error("generate --model /nonexistent --prompt x", "/nonexistent");
  expect_error("generate --model " + model_ + " --prompt-file /nonexistent", "/nonexistent: No such file");
  expect_error("generate --model " + model_ + " --prompt x --context-length 100000000", "context length");
  expect_error("generate --model " + model_ + " --prompt x --logit-bias 99999999 1.0", "logit_bias");
  expect_error("generate --model " + model_ + " --prompt x --chat", "chat template");
  expect_error("logits --model " + model_ + " --input-ids 1,99999999 --output " + (dir_ / "never").string() + "",
               "token id");
  expect_error("generate --model " + model_ + " --prompt x --stop-token-id 99999999", "stop_token_ids: expected 0 to ");
  expect_error("logits --model " + model_ + " --input-ids 1 --output /nonexistent/file", "/nonexistent/file");
  expect_error("tokenize --model " + model_ + " --decode 1,999999", "token id: expected 0 to 2047, found 999999");
  expect_error("bench attention --heads 4 --kv-heads 4 --head-dim 512 --batch 4096 --seqlen-k 1048576",
               "bytes available");
  write_file(dir_ / "long", std::string(200000, 'a'));
  expect_error("generate --model " + model_ + " --prompt-file " + (dir_ / "long").string(), "prompt: ");
}

TEST_F(CliTest, ATemplatesOwnErrorIsOneLine) {
  const fs::path model = copy_model();
  write_file(model / "chat_template.jinja", "{{ raise_exception('not\\nlike\\nthis') }}");
  expect_error("generate --chat --model " + model.string() + " --prompt x", "line 1: not like this");
}

TEST_F(CliTest, DamagedModelsAreOneLine) {
  fs::path model = copy_model();
  fs::remove(model / "config.json");
  expect_damaged(model, "config.json: No such file");

  const auto with_config = [&](const std::string& key, const nlohmann::json& value) {
    model = copy_model();
    auto config = nlohmann::json::parse(read_file(model / "config.json"));
    if (value.is_discarded()) {
      config.erase(key);
    } else {
      config[key] = value;
    }
    write_file(model / "config.json", config.dump());
  };
  const nlohmann::json removed(nlohmann::json::value_t::discarded);
  with_config("architectures", {"MysteryForCausalLM"});
  expect_damaged(model, "MysteryForCausalLM");
  with_config("hidden_size", removed);
  expect_damaged(model, "hidden_size");
  with_config("hidden_size", -8);
  expect_damaged(model, "hidden_size");
  with_config("num_hidden_layers", "three");
  expect_damaged(model, "num_hidden_layers");
  with_config("num_key_value_heads", 0);
  expect_damaged(model, "num_key_value_heads");
  with_config("vocab_size", 17);
  expect_damaged(model, "17");
  with_config("hidden_size", 1 << 30);
  expect_damaged(model, "");

  model = copy_model();
  write_file(model / "config.json", "{\"architectures\": [");
  expect_damaged(model, "config.json");
  model = copy_model();
  std::string config = read_file(model / "config.json");
  config.replace(config.find("\"rms_norm_eps\""), 14, "\"rms_norm_eps\": NaN, \"x\"");
  write_file(model / "config.json", config);
  expect_damaged(model, "config.json");

  const std::string weights = read_file(copy_model() / "model.safetensors");
  const auto with_weights = [&](const std::string& bytes) {
    model = copy_model();
    write_file(model / "model.safetensors", bytes);
  };
  with_weights("");
  expect_damaged(model, "model.safetensors");
  with_weights(weights.substr(0, weights.size() / 2));
  expect_damaged(model, "model.safetensors");
  with_weights(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + weights.substr(8));
  expect_damaged(model, "model.safetensors");
  with_weights(weights.substr(0, 8) + "!" + weights.substr(9));
  expect_damaged(model, "model.safetensors");
  model = copy_model();
  fs::remove(model / "model.safetensors");
  expect_damaged(model, "model.safetensors");

  model = copy_model();
  write_file(model / "tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
  expect_damaged(model, "tokenizer.json");
  model = copy_model();
  fs::remove(model / "tokenizer.json");
  expect_damaged(model, "tokenizer.json");
}

}  // namespace
}  // namespace onepass
