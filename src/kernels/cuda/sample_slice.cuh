// A thread block's slice of a row of logits, in shared memory or, where that is too small, where it is.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_cluster.cuh"

namespace onepass::sampling {

// Each warp has neighbouring pieces of 128 tokens, so that the order of blocks, warps, pieces and lanes is the tokens'.
template <bool kInShared>
struct Slice {
  float* logits;  // of the slice
  int first_token;
  int count;                   // tokens of the slice, 0 at the end of small vocabularies
  int first_piece, end_piece;  // of this warp
  bool by_vectors;             // 16-byte loads from global memory

  __device__ Slice(const Team& team, float* row, int vocab_size, int64_t row_stride, float* shared) {
    const int size = sample_slice_tokens(vocab_size, team.blocks);
    first_token = min(team.rank * size, vocab_size);
    count = min(size, vocab_size - first_token);
    by_vectors = row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
    logits = kInShared ? shared : row + first_token;
    const int pieces = (count + kSamplePiece - 1) / kSamplePiece;
    first_piece = team.warp * pieces / kWarps;
    end_piece = (team.warp + 1) * pieces / kWarps;
  }

  // Starts the copy of what this thread will visit, in parts that arrive one after another; -inf follows the last
  // token.
  __device__ void start_load(const float* row) const {
    if constexpr (kInShared) {
      const float* from = row + first_token;
      const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(logits));
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) {
#pragma unroll 1
        for (int piece = begin_of(part); piece < begin_of(part + 1); ++piece) {
          const int i = piece * kSamplePiece + threadIdx.x % 32 * 4;
          if (by_vectors && i + 4 <= count) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * 4), "l"(from + i) : "memory");
            continue;
          }
#pragma unroll 1
          for (int j = i; j < i + 4; ++j) {
            if (j < count) {
              asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to + j * 4), "l"(from + j) : "memory");
            } else {
              logits[j] = kMinusInfinity;
            }
          }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
      }
    }
  }
  // The first visit to what is being loaded, as for_each(). Others' tokens a thread may touch after a barrier only.
  template <typename F>
  __device__ void for_each_arriving(const F& f) const {
    if constexpr (kInShared) {
      static_assert(kParts == 3);
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      visit(begin_of(0), begin_of(1), f);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      visit(begin_of(1), begin_of(2), f);
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      visit(begin_of(2), begin_of(3), f);
    } else {
      for_each(f);
    }
  }

  __device__ float4 load(int i) const {
    if constexpr (kInShared) return *reinterpret_cast<const float4*>(logits + i);
    if (by_vectors && i + 4 <= count) return *reinterpret_cast<const float4*>(logits + i);
    const auto at = [&](int j) { return j < count ? logits[j] : kMinusInfinity; };
    return {at(i), at(i + 1), at(i + 2), at(i + 3)};
  }
  // f(logit, token) for each of this thread's, tokens ascending. Behind the vocabulary's end there is -inf.
  template <typename F>
  __device__ void for_each(const F& f) const {
    visit(first_piece, end_piece, f);
  }
  // f(logits of four neighbours, token of the first) for this warp's pieces in turn; all lanes come along.
  template <typename F>
  __device__ void for_each_piece(const F& f) const {
#pragma unroll 1
    for (int piece = first_piece; piece < end_piece; ++piece) {
      const int i = piece * kSamplePiece + threadIdx.x % 32 * 4;
      f(load(i), first_token + i);
    }
  }
  template <typename F>
  __device__ void visit(int begin, int end, const F& f) const {
#pragma unroll 2
    for (int piece = begin; piece < end; ++piece) {
      const int i = piece * kSamplePiece + threadIdx.x % 32 * 4;
      const float4 v = load(i);
      f(v.x, first_token + i);
      f(v.y, first_token + i + 1);
      f(v.z, first_token + i + 2);
      f(v.w, first_token + i + 3);
    }
  }
  static constexpr int kParts = 3;
  __device__ int begin_of(int part) const { return first_piece + (end_piece - first_piece) * part / kParts; }

  __device__ bool holds(int token) const { return token >= first_token && token < first_token + count; }
  __device__ float& at(int token) const { return logits[token - first_token]; }
};

}  // namespace onepass::sampling
