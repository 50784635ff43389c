// Rows of K, V and Q in shared memory.
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

}  // namespace onepass::portable
