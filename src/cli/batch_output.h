// The file of answers of generate --prompts, across the runs that fill it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace onepass {

// 64-bit FNV-1a in hexadecimal: tells whether an answer belongs to the request that the prompts file holds now.
std::string input_hash(std::string_view line);

// An answer of an earlier run.
struct EarlierAnswer {
  int64_t line = 0;
  std::string input_hash;
  bool failed = false;
};

// One run at a time has a file open. Answers begin {"line":N,"input_hash":"H", so that one that was interrupted can be
// told from text that is not ours.
class BatchOutput {
 public:
  // Reads what a regular file holds, and changes nothing; an error when another run has it open or it holds anything
  // but answers. A pipe or a device is only written to. An empty path: stdout.
  static StatusOr<BatchOutput> open(const std::string& path);

  BatchOutput(BatchOutput&& other) noexcept;
  BatchOutput& operator=(BatchOutput&&) = delete;
  ~BatchOutput();

  const std::vector<EarlierAnswer>& earlier_answers() const { return earlier_answers_; }

  // Cuts off the answer that an interrupted run did not write to its end. Before the first write().
  Status cut_unfinished();

  // Writes the request's number and hash, and `fields` after them.
  Status write(int64_t line, std::string_view input_hash, const nlohmann::ordered_json& fields);

  // An error when the last bytes could not be written.
  Status close();

 private:
  BatchOutput(std::string name, std::FILE* file) : name_(std::move(name)), file_(file) {}

  Status read_answers();

  std::string name_;
  std::FILE* file_;  // owned unless it is stdout
  std::vector<EarlierAnswer> earlier_answers_;
  size_t finished_bytes_ = 0, found_bytes_ = 0;
};

// The lines of a text; those of white space alone are passed over, but counted.
struct TextLine {
  int64_t number;
  std::string_view text;
};
std::vector<TextLine> split_lines(std::string_view text);

// An error when two of the files that a run reads and writes are the same one, whatever their names. Empty paths are
// passed over.
struct NamedPath {
  const char* option;
  std::string path;
};
Status check_distinct(const std::vector<NamedPath>& paths);

}  // namespace onepass
