#include "tensor/buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace onepass {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace

StatusOr<Buffer> Buffer::allocate(size_t size) {
  Buffer buffer;
  if (size == 0) return buffer;
  if (size > SIZE_MAX / 2) return resource_exhausted("out of memory: cannot allocate ", size, " bytes");
  if (size < kHugePage) {
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(64, round_up(size, 64)));
    if (buffer.data_ == nullptr) return resource_exhausted("out of memory: cannot allocate ", size, " bytes");
    std::memset(buffer.data_, 0, size);
  } else {
    // Map one huge page more than needed and give back what lies outside the aligned part.
    const size_t length = round_up(size, kHugePage);
    void* mapped =
        ::mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return resource_exhausted("out of memory: cannot map ", size, " bytes");
    std::byte* const begin = static_cast<std::byte*>(mapped);
    std::byte* const aligned = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uintptr_t>(mapped), kHugePage));
    if (aligned > begin) ::munmap(begin, aligned - begin);
    std::byte* const end = begin + length + kHugePage;
    if (aligned + length < end) ::munmap(aligned + length, end - (aligned + length));
    ::madvise(aligned, length, MADV_HUGEPAGE);
    buffer.data_ = aligned;
  }
  buffer.size_ = size;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (size_ < kHugePage) {
    std::free(data_);
  } else {
    ::munmap(data_, round_up(size_, kHugePage));
  }
}

}  // namespace onepass
