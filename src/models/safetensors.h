// The safetensors format (https://github.com/huggingface/safetensors): eight bytes of header length, a JSON header, the
// tensors.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace onepass {

// A tensor in memory that somebody else owns: row-major, any alignment.
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t num_elements() const;
  size_t size_bytes() const { return num_elements() * size_of(dtype); }
};

// "[3, 4]"
std::string shape_string(std::span<const int64_t> shape);

// One file, mapped; the views are valid while it lives. Everything in the header is checked when it is opened: sizes
// against the file, dtypes, shapes against offsets, that tensors neither overlap nor leave holes. An error names file,
// tensor, what was expected and what was found.
class SafetensorsFile {
 public:
  static StatusOr<SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  size_t file_size() const { return file_.bytes().size(); }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  SafetensorsFile(MappedFile file, std::map<std::string, TensorView> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
};

// Writes one float32 tensor piece by piece, so that it need not fit in memory. The file is complete, and then only,
// when close() has returned ok.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };
  static StatusOr<SafetensorsWriter> create(const std::string& path, const Tensor& tensor);

  // The next elements, in row-major order.
  Status append(std::span<const float> values);
  // Puts the file in its place, which until then holds what it held before. An error when the elements written are not
  // those that the shape announced, or the disk is full.
  Status close();

 private:
  struct FileCloser {
    std::string unfinished;  // a file to be removed; empty: none
    void operator()(std::FILE* file) const;
  };
  SafetensorsWriter() = default;

  std::string path_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  int64_t expected_ = 0;
  int64_t written_ = 0;
};

}  // namespace onepass
