#include "models/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "base/json.h"

namespace onepass {
namespace {

using nlohmann::json;

// The format's own limit.
constexpr uint64_t kMaxHeaderSize = 100'000'000;

std::optional<DType> parse_dtype(const std::string& name) {
  if (name == "F64") return DType::kF64;
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  if (name == "I64") return DType::kI64;
  if (name == "I32") return DType::kI32;
  if (name == "I16") return DType::kI16;
  if (name == "I8") return DType::kI8;
  if (name == "U8") return DType::kU8;
  if (name == "BOOL") return DType::kBool;
  return std::nullopt;
}

// A whole number of 0 or more, or nothing.
std::optional<uint64_t> as_size(const json& value) {
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  return std::nullopt;
}

// The header as JSON; a name that stands in it twice is refused, as the format says.
StatusOr<json> parse_header(const std::string& path, const char* text, uint64_t size) {
  std::set<std::string> names;
  std::optional<std::string> duplicate;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth == 1 && event == json::parse_event_t::key && !names.insert(parsed.get<std::string>()).second) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  ONEPASS_ASSIGN_OR_RETURN(json header, parse_json(path + ": header", {text, size}, watch));
  if (!header.is_object()) {
    return invalid_argument(path, ": header: expected a JSON object, found ", json_excerpt(header));
  }
  if (duplicate) {
    return invalid_argument(path, ": tensor ", printable(*duplicate), ": expected once in the header, found twice");
  }
  return header;
}

struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// One entry of the header, checked against the size of the data.
Status parse_tensor(const std::string& path, const std::string& name, const json& entry, uint64_t data_size,
                    TensorView& tensor, Extent& extent) {
  const auto error = [&](const auto&... args) {
    return invalid_argument(path, ": tensor ", printable(name), ": ", args...);
  };
  if (!entry.is_object()) return error("expected an object, found ", json_excerpt(entry));
  const json dtype = entry.value("dtype", json());
  const auto parsed_dtype = dtype.is_string() ? parse_dtype(dtype.get<std::string>()) : std::nullopt;
  if (!parsed_dtype)
    return error("dtype: expected F64, F32, F16, BF16 or an integer type, found ", json_excerpt(dtype));
  tensor.dtype = *parsed_dtype;
  const json shape = entry.value("shape", json());
  if (!shape.is_array()) return error("shape: expected a list, found ", json_excerpt(shape));
  if (shape.size() > 16) return error("shape: expected at most 16 dimensions, found ", shape.size());
  uint64_t bytes = size_of(tensor.dtype);
  for (const json& dimension : shape) {
    const auto size = as_size(dimension);
    if (!size || *size > uint64_t{1} << 48)
      return error("shape: expected sizes of 0 or more, found ", json_excerpt(shape));
    if (__builtin_mul_overflow(bytes, *size, &bytes))
      return error("shape: ", json_excerpt(shape), " has more bytes than fit 64 bits");
    tensor.shape.push_back(static_cast<int64_t>(*size));
  }
  const json offsets = entry.value("data_offsets", json());
  const bool is_pair = offsets.is_array() && offsets.size() == 2;
  const auto begin = is_pair ? as_size(offsets[0]) : std::nullopt, end = is_pair ? as_size(offsets[1]) : std::nullopt;
  if (!begin || !end || *begin > *end)
    return error("data_offsets: expected [begin, end], found ", json_excerpt(offsets));
  if (*end > data_size) {
    return error("data_offsets: expected to end within the file's ", data_size, " bytes of data, found ", *end);
  }
  if (*end - *begin != bytes) {
    return error("data_offsets: expected ", bytes, " bytes for ", to_string(tensor.dtype), " of shape ",
                 json_excerpt(shape), ", found ", *end - *begin);
  }
  extent = {*begin, *end};
  return ok_status();
}

}  // namespace

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

std::string shape_string(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += str_cat(i > 0 ? ", " : "", shape[i]);
  return text + "]";
}

StatusOr<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  ONEPASS_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < 8) {
    return invalid_argument(path, ": expected a safetensors file of at least 8 bytes, found ", bytes.size());
  }
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  if (header_size > kMaxHeaderSize || header_size > bytes.size() - 8) {
    return invalid_argument(path, ": header: expected at most ", std::min<uint64_t>(kMaxHeaderSize, bytes.size() - 8),
                            " bytes, found a length of ", header_size);
  }
  ONEPASS_ASSIGN_OR_RETURN(const json header,
                           parse_header(path, reinterpret_cast<const char*>(bytes.data()) + 8, header_size));
  const uint64_t data_size = bytes.size() - 8 - header_size;
  std::map<std::string, TensorView> tensors;
  std::vector<std::pair<Extent, std::string>> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    TensorView tensor;
    Extent extent;
    ONEPASS_RETURN_IF_ERROR(parse_tensor(path, name, entry, data_size, tensor, extent));
    tensor.data = bytes.data() + 8 + header_size + extent.begin;
    extents.emplace_back(extent, name);
    tensors.emplace(name, std::move(tensor));
  }
  std::sort(extents.begin(), extents.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.begin, a.first.end) < std::pair(b.first.begin, b.first.end);
  });
  uint64_t position = 0;
  for (const auto& [extent, name] : extents) {
    if (extent.begin != position) {
      return invalid_argument(path, ": tensor ", printable(name), ": data_offsets: expected to begin at ", position,
                              ", where the tensor before it ends, found ", extent.begin);
    }
    position = extent.end;
  }
  if (position != data_size) {
    return invalid_argument(path, ": expected ", position, " bytes of tensors, found ", data_size);
  }
  return SafetensorsFile(std::move(file), std::move(tensors));
}

void SafetensorsWriter::FileCloser::operator()(std::FILE* file) const {
  std::fclose(file);
  if (!unfinished.empty()) std::remove(unfinished.c_str());
}

StatusOr<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, const Tensor& tensor) {
  if (path.empty()) return invalid_argument("output: expected a file's name, found none");
  SafetensorsWriter writer;
  writer.path_ = path;
  writer.expected_ = 1;
  for (int64_t size : tensor.shape) writer.expected_ *= size;
  // Beside the file and renamed in the end: the file may be one that is mapped now. Pipes and devices are written to.
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  const bool in_place = std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
  if (!in_place) writer.file_.get_deleter().unfinished = path + ".unfinished";
  const std::string& opened = in_place ? path : writer.file_.get_deleter().unfinished;
  writer.file_.reset(std::fopen(opened.c_str(), "wb"));
  if (writer.file_ == nullptr) return invalid_argument(path, ": ", std::strerror(errno));
  const json header = {
      {tensor.name, {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {0, writer.expected_ * 4}}}}};
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the format pads with spaces, so that the data is aligned
  const uint64_t size = text.size();
  std::fwrite(&size, 8, 1, writer.file_.get());
  std::fwrite(text.data(), 1, text.size(), writer.file_.get());
  return writer;
}

Status SafetensorsWriter::append(std::span<const float> values) {
  written_ += static_cast<int64_t>(values.size());
  if (std::fwrite(values.data(), sizeof(float), values.size(), file_.get()) != values.size()) {
    return absl::DataLossError(str_cat(path_, ": ", std::strerror(errno)));
  }
  return ok_status();
}

Status SafetensorsWriter::close() {
  if (written_ != expected_) {
    return absl::InternalError(str_cat(path_, ": expected ", expected_, " elements, wrote ", written_));
  }
  const bool flushed = std::fflush(file_.get()) == 0 && std::ferror(file_.get()) == 0;
  std::string& unfinished = file_.get_deleter().unfinished;
  const bool placed = flushed && (unfinished.empty() || std::rename(unfinished.c_str(), path_.c_str()) == 0);
  const int error = errno;
  if (placed) unfinished.clear();
  file_.reset();
  return placed ? ok_status() : absl::DataLossError(str_cat(path_, ": ", std::strerror(error)));
}

}  // namespace onepass
