// How rows of K and V get from pages to shared memory: asynchronous copies of 16 bytes, 16 rows for each warp of a
// block.
#pragma once

#include <cstdint>

#include "attention/cuda/portable/shared_rows.cuh"
#include "tensor/cuda/ptx.cuh"

namespace onepass::portable {

__device__ inline void cp_async_16(uint32_t destination, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" : : "r"(destination), "l"(source) : "memory");
}

// Zeros, without reading, unless `read`.
__device__ inline void cp_async_16_or_zeros(uint32_t destination, const void* source, bool read) {
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

// The lane's i-th copy of rows of kPieces pieces: eight lanes take 128 bytes of a row; rows of other lengths are taken
// one after the other.
template <int kPieces>
__device__ inline int copied_row(int i, int lane) {
  return kPieces % 8 == 0 ? i / (kPieces / 8) * 4 + lane / 8 : (32 * i + lane) / kPieces;
}
template <int kPieces>
__device__ inline int copied_piece(int i, int lane) {
  return kPieces % 8 == 0 ? i % (kPieces / 8) * 8 + lane % 8 : (32 * i + lane) % kPieces;
}

// The 16 keys from `first` on, and where they lie. When pages are multiples of 16 tokens, as all but a few are
// (KernelParams::rows_together), they lie one after the other, else each lane l looks for key l % 16.
struct KeyRows {
  int first = 0;
  int page = 0;
  int row = -1;  // within the page, of the first key or of the lane's; -1: none of `keys`, zeros are loaded

  // Starts to read the page table, which takes as long as reading memory: to be called well before load(). The keys
  // that count are `keys`; no other page is looked at.
  __device__ void find(const KernelParams& p, const int32_t* page_table, int first_key, const KeyRange& keys,
                       int lane) {
    first = first_key;
    row = -1;
    const int key = p.rows_together ? first : first + lane % 16;
    if (key + (p.rows_together ? 15 : 0) < keys.begin || key >= keys.end) return;
    const int index = divide(key, p.page_size);
    row = key - index * static_cast<int>(p.page_size.divisor);
    page = page_table != nullptr ? __ldg(page_table + index) : 0;
  }

  // The warp's rows of kDim elements: those of `keys`, and zeros for the others.
  template <int kDim>
  __device__ void load(uint32_t destination, const char* source, int64_t page_stride, int64_t row_stride,
                       const KernelParams& p, const KeyRange& keys, int lane) const {
    using Rows = SharedRows<kDim>;
    constexpr int kCopies = Rows::kPieces / 2;  // of each lane
    if (!p.rows_together) {
      const int64_t own = row < 0 ? -1 : 2 * (page * page_stride + row * row_stride);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int r = copied_row<Rows::kPieces>(i, lane), piece = copied_piece<Rows::kPieces>(i, lane);
        const int64_t from = __shfl_sync(kFullWarp, own, r);
        cp_async_16_or_zeros(destination + Rows::offset(r, piece), source + max(from, int64_t{0}) + 16 * piece,
                             from >= 0);
      }
      return;
    }
    if (row >= 0) source += 2 * (page * page_stride + row * row_stride);
    if (first >= keys.begin && first + 16 <= keys.end) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int r = copied_row<Rows::kPieces>(i, lane), piece = copied_piece<Rows::kPieces>(i, lane);
        cp_async_16(destination + Rows::offset(r, piece), source + 2 * r * row_stride + 16 * piece);
      }
    } else {
#pragma unroll 2
      for (int i = 0; i < kCopies; ++i) {
        const int r = copied_row<Rows::kPieces>(i, lane), piece = copied_piece<Rows::kPieces>(i, lane);
        const bool real = first + r >= keys.begin && first + r < keys.end;
        cp_async_16_or_zeros(destination + Rows::offset(r, piece),
                             source + (real ? 2 * r * row_stride : 0) + 16 * piece, real);
      }
    }
  }
};

}  // namespace onepass::portable
