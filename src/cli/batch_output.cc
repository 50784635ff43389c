#include "cli/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"

namespace onepass {
namespace {

constexpr size_t kHashDigits = 16;
constexpr std::string_view kLineKey = R"({"line":)";
constexpr std::string_view kHashKey = R"(,"input_hash":")";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hash_digit(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }

// Whether `text` is the beginning of an answer, as far as it goes.
bool begins_answer(std::string_view text) {
  const auto take = [&text](std::string_view expected) {
    const size_t size = std::min(text.size(), expected.size());
    const bool matches = text.substr(0, size) == expected.substr(0, size);
    text.remove_prefix(size);
    return matches;
  };
  if (!take(kLineKey)) return false;
  size_t digits = 0;
  while (digits < text.size() && is_digit(text[digits])) ++digits;
  if (digits == 0 && !text.empty()) return false;
  text.remove_prefix(digits);
  if (!take(kHashKey)) return false;
  const std::string_view hash = text.substr(0, kHashDigits);
  if (!std::all_of(hash.begin(), hash.end(), is_hash_digit)) return false;
  text.remove_prefix(hash.size());
  return take("\",");
}

StatusOr<EarlierAnswer> parse_answer(std::string_view where, std::string_view text) {
  const auto value = parse_json(where, text);
  if (value.ok() && value->is_object()) {
    const auto line = value->find("line"), hash = value->find("input_hash");
    if (line != value->end() && line->is_number_unsigned() && hash != value->end() && hash->is_string() &&
        value->contains("choices") != value->contains("error")) {
      return EarlierAnswer{line->get<int64_t>(), hash->get<std::string>(), value->contains("error")};
    }
  }
  return invalid_argument(where, ": expected an answer of an earlier run, found ", printable(text, 60));
}

bool are_same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  if (std::filesystem::exists(a, error) && std::filesystem::exists(b, error)) {
    return std::filesystem::equivalent(a, b, error);
  }
  const auto whole_a = std::filesystem::weakly_canonical(a, error);
  if (error) return false;
  const auto whole_b = std::filesystem::weakly_canonical(b, error);
  return !error && whole_a == whole_b;
}

}  // namespace

std::string input_hash(std::string_view line) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : line) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  std::string digits(kHashDigits, '0');
  for (size_t i = kHashDigits; i-- > 0; hash >>= 4) digits[i] = "0123456789abcdef"[hash & 15];
  return digits;
}

StatusOr<BatchOutput> BatchOutput::open(const std::string& path) {
  if (path.empty()) return BatchOutput("stdout", stdout);
  struct stat info = {};
  const bool is_file = ::stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode);
  const int flags = (is_file ? O_RDWR | O_CREAT : O_WRONLY) | O_APPEND | O_CLOEXEC | O_NOCTTY;
  const int fd = ::open(path.c_str(), flags, 0666);
  if (fd < 0) return invalid_argument(path, ": ", std::strerror(errno));
  std::FILE* file = ::fdopen(fd, "a");
  if (file == nullptr) {
    const int error = errno;
    ::close(fd);
    return resource_exhausted(path, ": ", std::strerror(error));
  }
  BatchOutput output(path, file);
  if (!is_file) return output;
  // Held until the file is closed. A file system without locks is no reason not to work.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return absl::FailedPreconditionError(str_cat(path,
                                                 ": expected a file of this run's own, found one that another "
                                                 "run writes to"));
  }
  ONEPASS_RETURN_IF_ERROR(output.read_answers());
  return output;
}

BatchOutput::BatchOutput(BatchOutput&& other) noexcept
    : name_(std::move(other.name_)),
      file_(std::exchange(other.file_, nullptr)),
      earlier_answers_(std::move(other.earlier_answers_)),
      finished_bytes_(other.finished_bytes_),
      found_bytes_(other.found_bytes_) {}

BatchOutput::~BatchOutput() {
  if (file_ != nullptr && file_ != stdout) std::fclose(file_);
}

Status BatchOutput::read_answers() {
  ONEPASS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(name_));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  found_bytes_ = text.size();
  finished_bytes_ = text.rfind('\n') + 1;  // npos + 1 is 0
  for (const TextLine& line : split_lines(text.substr(0, finished_bytes_))) {
    ONEPASS_ASSIGN_OR_RETURN(EarlierAnswer answer, parse_answer(str_cat(name_, ":", line.number), line.text));
    earlier_answers_.push_back(std::move(answer));
  }
  if (const std::string_view rest = text.substr(finished_bytes_); !begins_answer(rest)) {
    return invalid_argument(name_, ": expected an answer of an earlier run at its end, found ", printable(rest, 60));
  }
  return ok_status();
}

Status BatchOutput::cut_unfinished() {
  if (finished_bytes_ < found_bytes_ && ::ftruncate(::fileno(file_), static_cast<off_t>(finished_bytes_)) != 0) {
    return absl::DataLossError(str_cat(name_, ": ", std::strerror(errno)));
  }
  return ok_status();
}

Status BatchOutput::write(int64_t line, std::string_view input_hash, const nlohmann::ordered_json& fields) {
  nlohmann::ordered_json answer = {{"line", line}, {"input_hash", input_hash}};
  answer.update(fields);
  const std::string text = answer.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_) == text.size() && std::fflush(file_) == 0) return ok_status();
  return absl::DataLossError(str_cat(name_, ": cannot write"));
}

Status BatchOutput::close() {
  std::FILE* file = std::exchange(file_, nullptr);
  const bool written = file == nullptr || file == stdout || std::fclose(file) == 0;
  return written ? ok_status() : absl::DataLossError(str_cat(name_, ": cannot write"));
}

std::vector<TextLine> split_lines(std::string_view text) {
  std::vector<TextLine> lines;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines.push_back({number, line});
    begin = end + 1;
  }
  return lines;
}

Status check_distinct(const std::vector<NamedPath>& paths) {
  for (size_t i = 0; i < paths.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (paths[i].path.empty() || paths[j].path.empty() || !are_same_file(paths[i].path, paths[j].path)) continue;
      return invalid_argument(paths[i].option, ": expected another file than that of ", paths[j].option, ", found ",
                              paths[i].path);
    }
  }
  return ok_status();
}

}  // namespace onepass
