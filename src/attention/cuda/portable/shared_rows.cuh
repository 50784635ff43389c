// Rows of K, V and Q in shared memory, and how they get there.
//
// A matrix instruction reads 16 bytes of each of eight rows at once, so those must lie in different banks: rows of a
// multiple of 128 bytes have their 16-byte pieces permuted, piece c of row r at c ^ (r % 8) within its 128 bytes; the
// others (head_dim 80, 96) are padded to an odd number of pieces.
#pragma once

#include <cstdint>

#include "attention/cuda/portable/masks.cuh"

namespace onepass::portable {

template <int kDim>
struct SharedRows {
  static constexpr int kPieces = kDim / 8;  // of 16 bytes
  static constexpr bool kPermuted = kPieces % 8 == 0;
  static constexpr int kStride = 16 * (kPermuted ? kPieces : kPieces | 1);  // bytes
  static_assert(kDim % 16 == 0);

  __device__ static uint32_t offset(int row, int piece) {
    return row * kStride + 16 * (kPermuted ? piece ^ (row & 7) : piece);
  }

  // Address of pieces 2 * pair and 2 * pair + 1, where `address` is that of piece 0 or 1 of the same row.
  __device__ static uint32_t piece_pair(uint32_t address, int pair) {
    return kPermuted ? (address ^ ((pair & 3) << 5)) + ((pair >> 2) << 7) : address + 32 * pair;
  }
};

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, or zeros without reading.
__device__ inline void cp_async_16(uint32_t destination, const void* source, bool read) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(destination), "l"(source), "r"(read ? 16 : 0)
               : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kPending of the groups committed last are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// One of the 16 rows that a warp loads of a block; lanes l and l + 16 stand for row l.
struct RowPlace {
  int page = 0;
  int row = -1;  // within the page; -1: no such key, zeros are loaded

  // Starts to read the page table, which takes as long as reading memory: to be called well before offset().
  __device__ void find(const KernelParams& p, const int32_t* page_table, int key, const KeyRange& keys) {
    row = -1;
    if (key < keys.begin || key >= keys.end) return;
    const int index = divide(key, p.page_size);
    row = key - index * static_cast<int>(p.page_size.divisor);
    page = page_table != nullptr ? page_table[index] : 0;
  }

  // In bytes; negative for zeros.
  __device__ int64_t offset(int64_t page_stride, int64_t row_stride) const {
    return row < 0 ? -1 : 2 * (page * page_stride + row * row_stride);
  }
};

// A warp loads its 16 rows, kDim elements each; `offset` is that of the lane's own row.
template <int kDim>
__device__ inline void load_16_rows(uint32_t destination, const char* source, int64_t offset, int lane) {
  using Rows = SharedRows<kDim>;
#pragma unroll
  for (int i = 0; i < Rows::kPieces / 2; ++i) {
    const int row = (32 * i + lane) / Rows::kPieces;
    const int piece = (32 * i + lane) % Rows::kPieces;
    const int64_t from = __shfl_sync(kFullWarp, offset, row);
    cp_async_16(destination + Rows::offset(row, piece), source + max(from, int64_t{0}) + 16 * piece, from >= 0);
  }
}

}  // namespace onepass::portable
