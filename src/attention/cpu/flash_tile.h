// The inner step of the one-pass algorithm, compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace onepass::cpu {

// Tiles of up to so many rows (decoding) read K and V where they lie: bringing 128 keys into scratch takes about 8,000
// cycles, which few rows do not pay back, and memory waits meanwhile.
inline constexpr int kMaxDirectRows = 12;

// Memory to be asked for ahead, cache line by cache line in the order of the runs: the K and V of the tile to come. The
// kernels move on in it while they work on the tile before.
struct FlashAhead {
  struct Run {
    const char* begin;
    int lines;  // at least 1
  };
  struct Cursor {
    const Run* run;
    int line;  // of the run
  };
  const Run* end = nullptr;
  Cursor cursors[3];  // the first is the furthest ahead
  bool started = false;
};

// A tile of query rows: every row is one query token and head, and all share one KV head. Rows past `rows` of a block
// of kRowBlock are not read.
struct FlashRows {
  int rows = 0;
  bool direct = false;      // read K and V where they lie instead of bringing them into scratch
  int head_dim = 0;         // padded to a multiple of 16 with zeros in `q`
  int head_dim_v = 0;       // likewise in `o`
  const void* q = nullptr;  // [rows, head_dim]: float32, or bf16 where the kernels multiply in bf16
  float* o = nullptr;       // [rows, head_dim_v]: sum of weights times V, so far
  float* max = nullptr;     // [rows]: largest score so far, in units of log 2; -inf at first
  float* sum = nullptr;     // [rows]: sum of weights so far
};

// One tile of keys and values for them.
struct FlashKeys {
  int count = 0;                   // at most kMaxKeys of the kernels
  const void* const* k = nullptr;  // [count] rows of head_dim, each k_offset bytes further on
  const void* const* v = nullptr;  // [count] rows of head_dim_v, each v_offset bytes further on
  int64_t k_offset = 0;
  int64_t v_offset = 0;
  const int32_t* first =
      nullptr;                    // [rows of the tile]: the keys that the row sees, relative to this tile: first..last,
  const int32_t* last = nullptr;  //   which may lie outside 0..count-1 or be empty
  FlashAhead* ahead = nullptr;
  int ahead_lines = 0;      // of `ahead`, to be asked for during this call
  float scale = 1.0f;       // of the scores, times log2(e); with a soft cap: of the scores over the cap
  float softcap = 0.0f;     // times log2(e); 0: none
  void* scratch = nullptr;  // scratch_bytes(head_dim, head_dim_v)
};

// Rows of all KV heads together that a stream takes, at most.
inline constexpr int kMaxStreamRows = 160;
// By rows of a head: how many heads a stream takes together, which must divide their number.
inline constexpr int kStreamHeads[] = {0, 4, 2, 1, 1, 1, 1, 1, 1};

// A few query rows in each of several KV heads, and a range of keys that are read where they lie.
struct FlashStream {
  int heads = 0;
  int rows = 0;  // of each head
  int head_dim = 0;
  int head_dim_v = 0;
  const void* q = nullptr;         // [heads, rows, head_dim] in bf16
  float* o = nullptr;              // [heads, rows, head_dim_v]: result, in memory far from that of other threads
  float* max = nullptr;            // [heads, rows]: results, as in FlashRows
  float* sum = nullptr;            // likewise
  const float* scale = nullptr;    // [heads]: as in FlashKeys
  float softcap = 0.0f;            // as in FlashKeys
  const int32_t* first = nullptr;  // [rows]: the keys that the row sees, relative to `begin`: first..last,
  const int32_t* last = nullptr;   //   which may lie outside 0..count-1 or be empty
  int64_t begin = 0;               // keys begin .. begin + count - 1 of the request
  int64_t count = 0;               // less than 2^30
  const char* k = nullptr;         // page 0 (or the request's first row), first KV head; strides are in bytes
  const char* v = nullptr;
  int64_t k_head_stride = 0, k_row_stride = 0, k_page_stride = 0;
  int64_t v_head_stride = 0, v_row_stride = 0, v_page_stride = 0;
  const int32_t* page_table = nullptr;  // of the request; null: its rows follow one another
  int64_t page_size = 0;
};

// The kernels of one dtype of K and V.
struct FlashKernels {
  int max_keys;  // keys of one tile
  bool q_is_bf16;
  // Absorbs a tile of keys: o, max and sum as if it had been there from the start (online softmax with rescaling).
  void (*absorb)(const FlashRows& rows, const FlashKeys& keys);
  int64_t (*scratch_bytes)(int head_dim, int head_dim_v);
  // The widest vector wants rows of K and V to be readable up to a multiple of 16 elements; others are copied first.
  // All keys of an item at once, in the order of memory; null where there is none. For items that can_stream() allows.
  void (*stream)(const FlashStream& stream) = nullptr;
};

struct FlashKernelTable {
  FlashKernels f32, f16, bf16;
};

namespace portable {
extern const FlashKernelTable kFlashKernels;
}
namespace avx2 {
extern const FlashKernelTable kFlashKernels;
}
namespace avx512 {
extern const FlashKernelTable kFlashKernels;
}
namespace avx512bf16 {
extern const FlashKernelTable kFlashKernels;
}

}  // namespace onepass::cpu
