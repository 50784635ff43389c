// Where a warp's rows of the prefill kernel go: to the output, or to their item's slot.
#pragma once

#include "attention/cuda/portable/results.cuh"

namespace onepass::portable {

// Of one of a lane's rows.
struct RowResult {
  int row = 0;          // of the tile
  float factor = 0.0f;  // of the output
  float lse = 0.0f;
};

// `out` are the warp's accumulators: of 16 rows each, tiles of 8 columns, as mma.m16n8k16 leaves them to the lanes.
template <typename T, int kDimV, int kRowTiles>
class RowStore {
  static constexpr int kOutTiles = kDimV / 8;

 public:
  __device__ RowStore(const KernelParams& p, int lane, const float (&out)[kRowTiles][kOutTiles][4])
      : p_(p), lane_(lane), out_(out) {}

  __device__ void store_parts(const WorkItem& item, const RowResult (&results)[kRowTiles][2]) const {
    const int t = lane_ % 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const RowResult& result = results[m][half];
        if (result.row >= item.rows) continue;
        if (t == 0) *partial_lse(p_, item.slot, result.row) = result.lse;
        float* const part = reinterpret_cast<float*>(partial_out<kDimV>(p_, item.slot, result.row, 0));
        store_floats(part + 2 * t, m, half, result.factor);
      }
    }
  }

  __device__ void store_rows(const WorkItem& item, RowResult (&results)[kRowTiles][2]) const {
    const int t = lane_ % 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        RowResult& result = results[m][half];
        const bool real = result.row < item.rows;
        const PackedRow row(p_, item, real ? result.row : 0);
        if (p_.sinks != nullptr) {
          Fold state;
          state.add(result.lse);
          result.factor *= state.finish(p_.sinks, row.head);
          result.lse = state.lse();
        }
        if (real && t == 0) store_lse(p_, row, result.lse);
        const int64_t at = row.token * p_.out_row_stride + row.head * p_.out_head_stride;
        if (p_.out_float32) {
          if (real) store_floats(static_cast<float*>(p_.out) + at + 2 * t, m, half, result.factor);
        } else {
          store_row(static_cast<T*>(p_.out) + at, m, half, result.factor, real);
        }
      }
    }
  }

 private:
  __device__ void store_floats(float* out, int m, int half, float factor) const {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      *reinterpret_cast<float2*>(out + 8 * n) = {out_[m][n][2 * half] * factor, out_[m][n][2 * half + 1] * factor};
    }
  }

  // Lanes change pairs with their neighbours, so that each has 8 bytes of one of two columns of 8 elements: whole
  // sectors are written.
  __device__ void store_row(T* out, int m, int half, float factor, bool real) const {
    const bool odd = lane_ % 2 == 1;
    out += 8 * (lane_ % 2) + 2 * (lane_ % 4 & 2);
#pragma unroll
    for (int n = 0; n < kOutTiles; n += 2) {
      const uint32_t first = pack<T>(out_[m][n][2 * half] * factor, out_[m][n][2 * half + 1] * factor);
      const uint32_t second = pack<T>(out_[m][n + 1][2 * half] * factor, out_[m][n + 1][2 * half + 1] * factor);
      const uint32_t got = __shfl_xor_sync(kFullWarp, odd ? first : second, 1);
      if (real) *reinterpret_cast<uint2*>(out + 8 * n) = odd ? uint2{got, second} : uint2{first, got};
    }
  }

  const KernelParams& p_;
  const int lane_;
  const float (&out_)[kRowTiles][kOutTiles][4];
};

}  // namespace onepass::portable
