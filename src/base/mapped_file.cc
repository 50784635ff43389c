#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace onepass {
namespace {

Status system_error(const std::string& path, int error) {
  const std::string message = str_cat(path, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
}

// The whole pages inside or around [offset, offset + size).
constexpr size_t kPage = 4096;

}  // namespace

StatusOr<MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return system_error(path, errno);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return system_error(path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return invalid_argument(path, ": expected a regular file");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      return system_error(path, error);
    }
  }
  ::close(fd);
  return MappedFile(path, static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (size_ > 0) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::prefetch(size_t offset, size_t size) const {
  if (offset >= size_) return;
  const size_t begin = offset / kPage * kPage;
  ::madvise(const_cast<std::byte*>(data_) + begin, std::min(size_, offset + size) - begin, MADV_WILLNEED);
}

void MappedFile::release(size_t offset, size_t size) const {
  if (offset >= size_ || size == 0) return;
  const size_t begin = offset / kPage * kPage;
  ::madvise(const_cast<std::byte*>(data_) + begin, std::min(size_, offset + size) - begin, MADV_DONTNEED);
}

StatusOr<std::string> read_text_file(const std::string& path, size_t limit) {
  ONEPASS_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  if (file.bytes().size() > limit) {
    return invalid_argument(path, ": ", file.bytes().size(), " bytes, more than the ", limit,
                            " expected of such a file");
  }
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

StatusOr<std::string> read_text_input(const std::string& path, size_t limit) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return system_error(path, errno);
  if (S_ISREG(info.st_mode)) return read_text_file(path, limit);
  if (S_ISDIR(info.st_mode) || S_ISBLK(info.st_mode)) return invalid_argument(path, ": expected a file or a pipe");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return system_error(path, errno);
  std::string text;
  std::array<char, 65536> block;
  Status status = ok_status();
  while (true) {
    const ssize_t count = ::read(fd, block.data(), block.size());
    if (count == 0) break;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      status = system_error(path, errno);
      break;
    }
    text.append(block.data(), static_cast<size_t>(count));
    if (text.size() > limit) {
      status = invalid_argument(path, ": more than the ", limit, " bytes expected of a text");
      break;
    }
  }
  ::close(fd);
  if (!status.ok()) return status;
  return text;
}

}  // namespace onepass
