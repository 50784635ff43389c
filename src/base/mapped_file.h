// A whole file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/status.h"

namespace onepass {

// Owns the mapping; the bytes are valid while the object lives. Safe to read from any thread.
class MappedFile {
 public:
  // An error names the path and the system's reason; a directory is refused. An empty file maps to no bytes.
  static StatusOr<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Starts reading [offset, offset + size) from disk in the background; a hint.
  void prefetch(size_t offset, size_t size) const;

  // Gives the pages of [offset, offset + size) back: they no longer count as this process's resident memory and are
  // read again (from the page cache) if touched. Called for weights once they are packed.
  void release(size_t offset, size_t size) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size) : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The contents of a small text file; an error names the path. Refuses files over `limit` bytes.
StatusOr<std::string> read_text_file(const std::string& path, size_t limit = size_t{256} << 20);

// The same of what need not be a file: a pipe, a terminal or a socket is read to its end (a named pipe waits for its
// writer).
StatusOr<std::string> read_text_input(const std::string& path, size_t limit = size_t{64} << 20);

}  // namespace onepass
