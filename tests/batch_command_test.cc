// generate --prompts and bench throughput as a user meets them.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "command_line.h"

namespace onepass {
namespace {

using nlohmann::json;

class BatchCommandTest : public CommandLineTest {
 protected:
  std::string prompts() const { return (dir_ / "prompts.jsonl").string(); }
  std::string output() const { return (dir_ / "output.jsonl").string(); }
  std::string command() const {
    return "generate --model " + model_ + " --deterministic --prompts " + prompts() + " --output " + output();
  }

  // The answers by line number; each is there once.
  std::map<int, json> answers() const {
    std::map<int, json> lines;
    std::istringstream file(read_file(output()));
    for (std::string line; std::getline(file, line);) {
      const json value = json::parse(line);
      EXPECT_TRUE(lines.emplace(value.at("line").get<int>(), value).second) << "twice: " << line;
    }
    return lines;
  }

  // Many requests of different lengths.
  void write_prompts(int count) const {
    std::string text;
    for (int i = 0; i < count; ++i) {
      const json line = {{"id", "request " + std::to_string(i)},
                         {"prompt", std::string(i % 2 == 0 ? "ROMEO:" : "JULIET:") + std::string(i % 5, '\n')},
                         {"max_tokens", 20 + i % 30},
                         {"temperature", i % 3 == 0 ? 0.0 : 0.9},
                         {"seed", i}};
      text += line.dump() + "\n";
    }
    write_file(prompts(), text);
  }

  const std::string model_ = bundled_model("shakespeare-1m");
};

TEST_F(BatchCommandTest, EachLineGetsWhatItGetsAlone) {
  write_prompts(24);
  const CommandResult result = run(command() + " --kv-tokens 640 --page-size 16 --max-running-requests 8");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("24 lines in"), std::string::npos) << result.err;
  const std::map<int, json> lines = answers();
  ASSERT_EQ(lines.size(), 24u);
  for (const int i : {0, 5, 10, 15, 20}) {
    const json& line = lines.at(i + 1);
    EXPECT_EQ(line.at("id").get<std::string>(), "request " + std::to_string(i));
    const std::string alone = "generate --model " + model_ + " --deterministic --json --quiet --max-tokens " +
                              std::to_string(20 + i % 30) + " --temperature " + (i % 3 == 0 ? "0" : "0.9") +
                              " --seed " + std::to_string(i) + " --prompt " + (i % 2 == 0 ? "ROMEO:" : "JULIET:");
    const json expected = json::parse(run(alone).out);
    EXPECT_EQ(line.at("choices").at(0).at("text").get<std::string>(), expected.at("text").get<std::string>());
    EXPECT_EQ(line.at("usage").at("completion_tokens").get<int>(),
              expected.at("usage").at("completion_tokens").get<int>());
  }
}

TEST_F(BatchCommandTest, ABadLineFailsByItself) {
  write_file(prompts(),
             "{\"prompt\": \"ROMEO:\", \"max_tokens\": 3}\n"
             "{\"prompt\": \"ROMEO:\", \"temprature\": 1}\n"
             "not json\n"
             "\n"
             "{\"prompt\": \"ROMEO:\", \"max_tokens\": 0}\n"
             "{\"prompt\": 5}\n"
             "{\"prompt\": \"\"}\n"
             "{}\n"
             "[1]\n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"
             "{\"prompt\": \"ROMEO:\", \"top_k\": 1e30}\n"
             "{\"prompt\": \"ROMEO:\", \"n\": 1000}\n"
             "{\"prompt\": \"ROMEO:\", \"logit_bias\": {\"x\": 1}}\n"
             "{\"prompt\": \"ROMEO:\", \"stop\": [\"\"]}\n"
             "{\"prompt\": \"" +
                 std::string(20000, 'x') +
                 "\"}\n"
                 "{\"prompt\": \"JULIET:\", \"max_tokens\": 3, \"n\": 2, \"logprobs\": 1}");
  const CommandResult result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("13 of 15 lines failed"), std::string::npos) << result.err;
  const std::map<int, json> lines = answers();
  ASSERT_EQ(lines.size(), 15u);
  const std::map<int, std::string> expected = {{2, "unknown key: temprature"},
                                               {3, "line: expected JSON, found parse error at line 1"},
                                               {5, "max_new_tokens: expected at least 1, found 0"},
                                               {6, "prompt: expected a text or token ids, found 5"},
                                               {7, "prompt: expected text, found none"},
                                               {8, "expected either \"prompt\" or \"messages\", found neither"},
                                               {9, "line: expected an object, found [1]"},
                                               {10, "chat: the model has no chat template"},
                                               {11, "top_k: expected a whole number in range, found 1e+30"},
                                               {12, "n: expected 1 to 128, found 1000"},
                                               {13, "logit_bias: expected a token id, found x"},
                                               {14, "stop: expected strings that are not empty"},
                                               {15, "but the context of 1024 holds at most 1023"}};
  for (const auto& [number, message] : expected) {
    EXPECT_NE(lines.at(number).at("error").get<std::string>().find(message), std::string::npos)
        << number << ": " << lines.at(number).dump();
    EXPECT_NE(result.err.find(":" + std::to_string(number) + ": "), std::string::npos) << number;
  }
  EXPECT_EQ(lines.at(1).at("choices").size(), 1u);
  EXPECT_EQ(lines.at(16).at("choices").size(), 2u);
  EXPECT_EQ(lines.at(16).at("choices").at(1).at("logprobs").size(), 3u);
}

TEST_F(BatchCommandTest, AnInterruptedRunGoesOn) {
  write_prompts(60);
  ASSERT_EQ(run(command()).exit_status, 0);
  const std::map<int, json> expected = answers();
  ASSERT_EQ(expected.size(), 60u);
  // As if it had been killed within a line.
  const std::string whole = read_file(output());
  write_file(output(), whole.substr(0, whole.size() / 2));
  CommandResult result = run(command());
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("goes on after"), std::string::npos) << result.err;
  const auto without_usage = [](std::map<int, json> lines) {
    for (auto& [number, line] : lines) line.erase("usage");  // what the cache held differs
    return lines;
  };
  EXPECT_EQ(without_usage(answers()), without_usage(expected));
  // Nothing is left to do.
  result = run(command());
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_NE(result.err.find("every line is done already"), std::string::npos);
  EXPECT_EQ(answers().size(), 60u);
  // Another file is not written over.
  write_file(output(), "my notes\n");
  result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_EQ(read_file(output()), "my notes\n");
}

TEST_F(BatchCommandTest, AFileThatIsNotOurOutputIsLeftAlone) {
  const std::string prompt = R"({"prompt":"ROMEO:","max_tokens":2})";
  write_file(prompts(), prompt);
  const auto refuses = [&](const std::string& arguments, const std::string& message) {
    const CommandResult result = run("generate --model " + model_ + " --prompts " + prompts() + " " + arguments);
    EXPECT_EQ(result.exit_status, 1) << arguments;
    EXPECT_NE(result.err.find(message), std::string::npos) << arguments << ": " << result.err;
    EXPECT_EQ(read_file(prompts()), prompt) << arguments;
  };
  // One file for two purposes, by any name.
  refuses("--output " + prompts(), "--output: expected another file than that of --prompts");
  refuses("--trace " + prompts(), "--trace: expected another file than that of --prompts");
  std::filesystem::create_hard_link(prompts(), dir_ / "link.jsonl");
  refuses("--output " + (dir_ / "link.jsonl").string(), "--output: expected another file than that of --prompts");
  refuses("--output " + output() + " --trace " + (dir_ / "." / "output.jsonl").string(),
          "--trace: expected another file than that of --output");
  EXPECT_FALSE(std::filesystem::exists(output()));
  // Another file's last line, whole or not.
  for (const std::string notes : {"my precious notes", "{\"prompt\":\"A\"}", "{\"line\":\"a poem\"}", "my notes\n",
                                  "{\"line\":1}\n", "{\"line\":1,\"input_hash\":\"xyz\"}"}) {
    write_file(output(), notes);
    refuses("--output " + output(), "expected an answer of an earlier run");
    EXPECT_EQ(read_file(output()), notes);
  }
}

TEST_F(BatchCommandTest, AnUnfinishedAnswerIsCutOffWhereverItEnds) {
  write_prompts(2);
  ASSERT_EQ(run(command()).exit_status, 0);
  const std::string whole = read_file(output());
  const size_t second = whole.find('\n') + 1;
  for (const size_t kept : {1, 7, 9, 15, 26, 40, 100}) {
    write_file(output(), whole.substr(0, second + kept));
    const CommandResult result = run(command());
    EXPECT_EQ(result.exit_status, 0) << kept << ": " << result.err;
    EXPECT_EQ(answers().size(), 2u) << kept;
  }
}

TEST_F(BatchCommandTest, LinesThatAskForTooMuchFailByThemselves) {
  const std::string deep(200000, '[');
  write_file(prompts(), "{\"prompt\":" + deep + "\n{\"prompt\":\"A\",\"id\":" + deep + std::string(200000, ']') +
                            "}\n{\"prompt\":\"A\",\"n\":2147483647}\n{\"prompt\":\"A\",\"best_of\":2147483647}\n"
                            "{\"prompt\":\"ROMEO:\",\"max_tokens\":2}\n");
  const CommandResult result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("4 of 5 lines failed"), std::string::npos) << result.err;
  const std::map<int, json> lines = answers();
  ASSERT_EQ(lines.size(), 5u);
  for (const int number : {1, 2}) {
    EXPECT_EQ(lines.at(number).at("error").get<std::string>(),
              "line: expected JSON nested at most 64 deep, found 200001");
  }
  EXPECT_EQ(lines.at(3).at("error").get<std::string>(), "n: expected 1 to 128, found 2147483647");
  EXPECT_EQ(lines.at(4).at("error").get<std::string>(), "best_of: expected n (1) to 128, found 2147483647");
  EXPECT_EQ(lines.at(5).at("choices").size(), 1u);
}

TEST_F(BatchCommandTest, EarlierFailuresCountAndChangedInputIsRefused) {
  const std::string good = "{\"prompt\":\"ROMEO:\",\"max_tokens\":2}\n";
  write_file(prompts(), good + "{\"prompt\":5}\n");
  EXPECT_EQ(run(command()).exit_status, 1);
  CommandResult result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("every line is done already"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("1 lines failed earlier"), std::string::npos) << result.err;
  // More lines may come.
  write_file(prompts(), good + "{\"prompt\":5}\n" + good + "{}\n");
  result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("1 of 2 lines failed, 1 lines failed earlier"), std::string::npos) << result.err;
  EXPECT_EQ(answers().size(), 4u);
  // Other or fewer ones may not.
  const std::string before = read_file(output());
  for (const std::string& changed : {"{\"prompt\":\"JULIET:\"}\n{\"prompt\":5}\n" + good + "{}\n", good}) {
    write_file(prompts(), changed);
    result = run(command());
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_NE(result.err.find("give another --output"), std::string::npos) << result.err;
    EXPECT_EQ(read_file(output()), before);
  }
}

TEST_F(BatchCommandTest, OneRunAtATimeWritesToAFile) {
  write_prompts(2);
  const int fd = ::open(output().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  const CommandResult result = run(command());
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("another run writes to"), std::string::npos) << result.err;
  EXPECT_EQ(read_file(output()), "");
  ::close(fd);
  EXPECT_EQ(run(command()).exit_status, 0);
  EXPECT_EQ(answers().size(), 2u);
}

TEST_F(BatchCommandTest, LinesMayBeWrittenAsForVllm) {
  write_file(prompts(),
             R"({"prompt":[1,2,3],"max_tokens":4,"top_k":-1,"stop":null,"seed":null,"temperature":0,"n":null})"
             "\n"
             R"({"prompt_token_ids":[1,2,3],"prompt":null,"max_tokens":4,"top_k":0,"temperature":0,"logprobs":0})"
             "\n"
             R"({"prompt":[1,1000000]})"
             "\n"
             R"({"prompt":[]})"
             "\n"
             R"({"prompt":["a"]})"
             "\n"
             R"({"prompt":"a","prompt_token_ids":[1]})"
             "\n"
             R"({"prompt":"a","top_k":-2})"
             "\n"
             R"({"prompt":"a","nonsense":null})");
  const CommandResult result = run(command() + " --logprobs 2");
  EXPECT_EQ(result.exit_status, 1);
  const std::map<int, json> lines = answers();
  ASSERT_EQ(lines.size(), 8u);
  const json& first = lines.at(1).at("choices").at(0);
  const json& second = lines.at(2).at("choices").at(0);
  EXPECT_EQ(first.at("token_ids"), second.at("token_ids"));
  EXPECT_EQ(lines.at(1).at("usage").at("prompt_tokens").get<int>(), 3);
  EXPECT_EQ(first.at("logprobs").at(0).at("top_logprobs").size(), 2u);
  for (int number = 3; number <= 8; ++number) EXPECT_TRUE(lines.at(number).contains("error")) << number;
  for (const char* line : {"Throughput: ", " requests/s, ", " total tokens/s, ", " output tokens/s\n",
                           "Total num prompt tokens:  6\n", "Total num output tokens:  8\n"}) {
    EXPECT_NE(result.err.find(line), std::string::npos) << line << result.err;
  }
}

TEST_F(BatchCommandTest, PromptsComeFromAPipeAndAnswersGoToADevice) {
  const std::string line = "{\"prompt\":\"ROMEO:\",\"max_tokens\":2}\n";
  CommandResult result = run("generate --model " + model_ + " --prompts /dev/stdin", line);
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(json::parse(result.out).at("line").get<int>(), 1);
  write_file(prompts(), line);
  const std::string fifo = (dir_ / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  result = run("--version; cat " + prompts() + " >" + fifo + " & " ONEPASS_BINARY " generate --model " + model_ +
               " --quiet --prompts " + fifo + " --output " + output());
  EXPECT_EQ(answers().size(), 1u) << result.err;
  result = run("generate --model " + model_ + " --prompts " + prompts() + " --output /dev/full");
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("/dev/full: cannot write"), std::string::npos) << result.err;
}

TEST_F(BatchCommandTest, AnswersOfEqualLinesDiffer) {
  const std::string line = "{\"prompt\": \"ROMEO:\", \"max_tokens\": 16, \"temperature\": 1.0, \"n\": 4}\n";
  write_file(prompts(), line + line + line);
  ASSERT_EQ(run(command() + " --seed 1").exit_status, 0);
  std::set<std::string> texts;
  for (const auto& [number, answer] : answers()) {
    for (const json& choice : answer.at("choices")) texts.insert(choice.at("text").get<std::string>());
  }
  EXPECT_EQ(texts.size(), 12u);
}

TEST_F(BatchCommandTest, CtrlCKeepsWhatIsDone) {
  // The signal comes once some answers are there, however slow this machine is; 600 lines, two at a time, leave no
  // doubt that some are not.
  write_prompts(600);
  const std::string err_path = (dir_ / "interrupted.err").string();
  run("--version >/dev/null; " ONEPASS_BINARY " " + command() + " --max-running-requests 2 2>" + err_path +
      " & pid=$!; while kill -0 $pid && ! [ -s " + output() + " ]; do sleep 0.01; done; kill -INT $pid; wait $pid");
  const std::string err = read_file(err_path);
  EXPECT_NE(err.find("interrupted: "), std::string::npos) << err;
  const size_t done = answers().size();
  EXPECT_GT(done, 0u);
  EXPECT_LT(done, 600u);
  const CommandResult again = run(command());
  EXPECT_EQ(again.exit_status, 0) << again.err;
  EXPECT_EQ(answers().size(), 600u);
}

TEST_F(BatchCommandTest, TheTraceShowsStepsAndWaiting) {
  write_prompts(30);
  const std::string trace = (dir_ / "trace.json").string();
  const CommandResult result =
      run(command() + " --trace " + trace + " --max-running-requests 4 --kv-tokens 256 --page-size 16 --quiet");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  const json events = json::parse(read_file(trace));
  std::set<std::string> names, lanes;
  for (const json& event : events) {
    names.insert(event.value("name", ""));
    if (event.value("name", "") == "thread_name") lanes.insert(event.at("args").at("name").get<std::string>());
    if (event.value("ph", "") == "X") {
      EXPECT_GE(event.at("dur").get<double>(), 0.0) << event.dump();
    }
  }
  for (const char* name : {"step 1", "prefill", "decode", "tokens", "requests", "pages",
                           "waits for a place among those that run", "ends: length"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  EXPECT_EQ(lanes.size(), 31u);  // the engine's and one for each request
  std::filesystem::remove(output());
  EXPECT_EQ(run(command() + " --trace /nonexistent/t.json").exit_status, 1);
  EXPECT_EQ(run(command() + " --trace /dev/full").exit_status, 1);
}

TEST_F(BatchCommandTest, ThroughputPrintsTheFieldsOfTheField) {
  const std::string bench = "bench throughput --model " + model_;
  CommandResult result = run(bench + " --num-prompts 6 --random-input-len 40 --random-output-len 8");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  for (const char* field :
       {"Successful requests:", "Benchmark duration (s):", "Total input tokens:", "Total generated tokens:",
        "Request throughput (req/s):", "Output token throughput (tok/s):", "Mean TTFT (ms):", "P99 TPOT (ms):",
        "Median ITL (ms):"}) {
    EXPECT_NE(result.out.find(field), std::string::npos) << field;
  }
  result = run(bench +
               " --dataset-name generated-shared-prefix --gsp-num-groups 2 --gsp-prompts-per-group 8 "
               "--gsp-system-prompt-len 256 --gsp-question-len 16 --gsp-output-len 1 --json");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(json::parse(result.out).at("computed_tokens").get<int>(), 2 * 256 + 16 * 16);
  result = run(bench +
               " --disable-prefix-cache --dataset-name generated-shared-prefix --gsp-num-groups 2 "
               "--gsp-prompts-per-group 8 --gsp-system-prompt-len 256 --gsp-question-len 16 "
               "--gsp-output-len 1 --json");
  EXPECT_EQ(json::parse(result.out).at("computed_tokens").get<int>(), 16 * (256 + 16));
  write_file(dir_ / "chats.json", R"([{"conversations": [{"from": "human", "value": "What is love, good friend?"},
    {"from": "gpt", "value": "A smoke made with the fume of sighs."}]}, {"conversations": []}, 7])");
  result = run(bench + " --dataset-name sharegpt --dataset-path " + (dir_ / "chats.json").string() + " --json");
  ASSERT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(json::parse(result.out).at("successful_requests").get<int>(), 1);
  EXPECT_EQ(run(bench + " --dataset-name sharegpt").exit_status, 2);
  EXPECT_EQ(run(bench + " --random-input-len 5000").exit_status, 1);
  EXPECT_EQ(run(bench + " --dataset-name other").exit_status, 2);
}

TEST_F(BatchCommandTest, OptionsThatWouldBeIgnoredAreRefused) {
  write_prompts(1);
  const std::string generate = "generate --model " + model_;
  EXPECT_EQ(run(generate + " --prompts " + prompts() + " --prompt x").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompts " + prompts() + " --json").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompt x --output y").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompt x --trace y").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompt x --kv-tokens 100").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompts " + prompts() + " --max-running-requests 0").exit_status, 2);
  EXPECT_EQ(run(generate + " --prompts /nonexistent.jsonl").exit_status, 1);
  write_file(prompts(), "\n \n");
  EXPECT_EQ(run(generate + " --prompts " + prompts()).exit_status, 1);
}

}  // namespace
}  // namespace onepass
