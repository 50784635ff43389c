/* Attention over paged and contiguous KV caches on NVIDIA GPUs, in C: libonepass_attention.
 *
 * A call works in two parts. onepass_attention_plan() turns the lengths of a batch into a plan in device memory;
 * onepass_attention_run() attends by it, as often as there are layers. Both only queue work on a stream, and lengths
 * are read on the device alone: a CUDA graph that has captured them is right for any lengths that are later written to
 * the same addresses, within batch, total_q and max_seqlen_q.
 *
 *   onepass_device* device;
 *   onepass_device_open(0, &device, message, sizeof message);
 *   onepass_attention_params params = onepass_attention_params_default();
 *   params.q = ...;
 *   onepass_attention_choose(device, &params, "auto", &kernel, message, sizeof message);
 *   onepass_attention_scratch_bytes(device, kernel, &params, &bytes, message, sizeof message);
 *   (allocate that much device memory and zero it)
 *   onepass_attention_plan(device, kernel, &params, scratch, bytes, stream, message, sizeof message);
 *   onepass_attention_run(device, kernel, &params, scratch, bytes, stream, message, sizeof message);
 *
 * Every function that can fail returns a status and, where that is not ONEPASS_OK, writes one line that names the
 * field, what was expected and what was found into the caller's `message` of `message_size` bytes (which may be null
 * and 0). All functions may be called from any thread. A GPU's handle is not changed by its use; the GPU that is
 * current stays so.
 *
 * Structs begin with struct_size, which the *_default() functions set: it tells a newer library which fields an older
 * program knows. Strides are in elements; the stride of a head's elements is 1. Pointers are device memory unless said
 * otherwise. */
#ifndef ONEPASS_ATTENTION_H_
#define ONEPASS_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ONEPASS_API __attribute__((visibility("default")))
#else
#define ONEPASS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header; onepass_attention_version() tells the library's. */
#define ONEPASS_ATTENTION_VERSION 1

typedef enum onepass_status {
  ONEPASS_OK = 0,
  ONEPASS_INVALID_ARGUMENT = 1, /* a field is wrong on any GPU */
  ONEPASS_UNSUPPORTED = 2,      /* no kernel in this library serves it on this GPU */
  ONEPASS_NO_DEVICE = 3,        /* no driver, no such GPU, or no code for it */
  ONEPASS_CUDA_ERROR = 4        /* CUDA refused; nothing was queued */
} onepass_status;

/* Values of the fields named *dtype. */
enum { ONEPASS_FLOAT32 = 0, ONEPASS_FLOAT16 = 1, ONEPASS_BFLOAT16 = 2 };

ONEPASS_API int32_t onepass_attention_version(void);

/* ---- GPUs ---- */

typedef struct onepass_device onepass_device;

typedef struct onepass_device_info {
  size_t struct_size;
  int32_t index;
  int32_t compute_capability; /* 10 * major + minor: 90 for Hopper */
  int32_t multiprocessors;
  int32_t reserved; /* 0 */
  int64_t memory_bytes;
  int64_t l2_cache_bytes;
  int64_t shared_memory_bytes; /* the most that one thread block may have */
  char name[128];
} onepass_device_info;

/* 0 and ONEPASS_NO_DEVICE without a driver or a GPU. */
ONEPASS_API onepass_status onepass_device_count(int32_t* count, char* message, size_t message_size);

/* Asks the GPU called `index` by CUDA for its properties. To be closed. */
ONEPASS_API onepass_status onepass_device_open(int32_t index, onepass_device** device, char* message,
                                               size_t message_size);
ONEPASS_API void onepass_device_close(onepass_device* device);
ONEPASS_API onepass_status onepass_device_query(const onepass_device* device, onepass_device_info* info, char* message,
                                                size_t message_size);

/* ---- Attention ----
 *
 * Query row i of a request with seqlen_q new tokens and seqlen_k keys in all has position p = seqlen_k - seqlen_q + i.
 * Key j is seen when j <= p (causal), p - window_left <= j (window_left >= 0), j <= p + window_right (window_right >=
 * 0), and j / attention_chunk == p / attention_chunk, rounded down (attention_chunk > 0). The score is softmax_scale *
 * q.k, then softcap * tanh(score / softcap) where softcap > 0, then the mask. A row that sees no key gives out = 0 and
 * lse = -inf. What lies past a request's end is never read as a number. */
typedef struct onepass_attention_params {
  size_t struct_size;

  const void* q; /* [total_q, num_heads, head_dim] */
  int64_t q_row_stride;
  int64_t q_head_stride;

  /* Paged (page_table given): [num_pages, page_size, num_heads_kv, head_dim]. Contiguous: [total_kv_rows, num_heads_kv,
   * head_dim], request b begins at row cu_seqlens_k[b]. total_kv_rows: num_pages * page_size, or the rows of k; 0 when
   * not known, which rules out the kernels that copy by tensor maps. */
  const void* k;
  const void* v; /* the same with head_dim_v */
  int64_t k_page_stride;
  int64_t k_row_stride;
  int64_t k_head_stride;
  int64_t v_page_stride;
  int64_t v_row_stride;
  int64_t v_head_stride;
  int64_t total_kv_rows;

  void* out; /* [total_q, num_heads, head_dim_v] */
  int64_t out_row_stride;
  int64_t out_head_stride;
  float* softmax_lse; /* [num_heads, total_q], natural logarithms; or null */

  int32_t q_dtype;
  int32_t kv_dtype;
  int32_t out_dtype;

  int32_t batch;
  int32_t total_q;      /* rows of q */
  int32_t max_seqlen_q; /* at least the longest request's */
  int32_t num_heads;    /* a multiple of num_heads_kv */
  int32_t num_heads_kv;
  int32_t head_dim;
  int32_t head_dim_v;

  const int32_t* cu_seqlens_q;  /* [batch + 1], prefix sums of the query lengths */
  const int32_t* cache_seqlens; /* [batch], keys of each request, new tokens included */
  const int32_t* cu_seqlens_k;  /* [batch + 1], contiguous layout only; entry b says where request b begins */
  const int32_t* page_table;    /* [batch, page_table_stride] */
  int64_t page_table_stride;
  int32_t page_size;

  int32_t causal;      /* 0 or 1 */
  int32_t window_left; /* -1: no limit */
  int32_t window_right;
  int32_t attention_chunk; /* 0: none */
  float softmax_scale;
  float softcap;      /* 0: none */
  int32_t num_splits; /* 0: the kernel chooses, 1: never, n: at most n parts */
  const float* sinks; /* [num_heads], or null */
  /* > 0: cuts every split_size keys, so that a result does not depend on the rest of the batch. */
  int32_t split_size;
  /* 0 or 1, with a split_size: bits do not depend on the batch, nor on the chunks of a prompt. */
  int32_t batch_invariant;
} onepass_attention_params;

typedef struct onepass_attention_kernel onepass_attention_kernel;

/* The kernels by number, the most special first; null past the last. */
ONEPASS_API const onepass_attention_kernel* onepass_attention_kernel_at(int32_t number);
ONEPASS_API const char* onepass_attention_kernel_name(const onepass_attention_kernel* kernel);

/* The kernel called `name`, or the best that serves `params` for "auto". It depends on sizes, strides, options and on
 * which pointers are null, not on addresses or what lies there. */
ONEPASS_API onepass_status onepass_attention_choose(const onepass_device* device,
                                                    const onepass_attention_params* params, const char* name,
                                                    const onepass_attention_kernel** kernel, char* message,
                                                    size_t message_size);

/* Device memory that plan and run need: 256-byte aligned, all zero before the first plan, then left alone; for one
 * stream at a time and one kernel, whatever the params, while there is enough of it. */
ONEPASS_API onepass_status onepass_attention_scratch_bytes(const onepass_device* device,
                                                           const onepass_attention_kernel* kernel,
                                                           const onepass_attention_params* params, int64_t* bytes,
                                                           char* message, size_t message_size);

/* One plan serves every run whose params differ in addresses alone (cu_seqlens_q and cache_seqlens included, while they
 * hold the same numbers; page tables may differ: what a plan reads of the one it is given is a hint). `stream` is a
 * cudaStream_t. q, k, v and out begin at multiples of 16 bytes. Strides that are no multiples of 16 bytes are served
 * by the kernel "naive" alone. */
ONEPASS_API onepass_status onepass_attention_plan(const onepass_device* device, const onepass_attention_kernel* kernel,
                                                  const onepass_attention_params* params, void* scratch,
                                                  int64_t scratch_bytes, void* stream, char* message,
                                                  size_t message_size);
ONEPASS_API onepass_status onepass_attention_run(const onepass_device* device, const onepass_attention_kernel* kernel,
                                                 const onepass_attention_params* params, void* scratch,
                                                 int64_t scratch_bytes, void* stream, char* message,
                                                 size_t message_size);

/* Both in one call, for a plan that is used once. */
ONEPASS_API onepass_status onepass_attention_plan_and_run(const onepass_device* device,
                                                          const onepass_attention_kernel* kernel,
                                                          const onepass_attention_params* params, void* scratch,
                                                          int64_t scratch_bytes, void* stream, char* message,
                                                          size_t message_size);

/* ---- Merge of attention over parts of the keys (prefix and suffix, splits, a tree's branches) ---- */

/* `count` parts, one after the other. */
typedef struct onepass_part_stack {
  const void* out; /* [count, rows, num_heads, head_dim_v]; not read where lse is -inf */
  int64_t part_stride;
  int64_t row_stride;
  int64_t head_stride;
  const float* lse; /* [count, num_heads, rows] */
  int64_t lse_part_stride;
  int64_t lse_head_stride;
  int32_t count;
  int32_t dtype; /* ONEPASS_FLOAT32, ONEPASS_FLOAT16 or ONEPASS_BFLOAT16 */
} onepass_part_stack;

/* Merges in the order given, in float32. Where all parts are empty, out = 0 and lse = -inf. */
typedef struct onepass_merge_params {
  size_t struct_size;
  const onepass_part_stack* stacks; /* host memory */
  int32_t num_stacks;               /* at most 8 */
  int32_t out_dtype;
  void* out; /* [rows, num_heads, head_dim_v] */
  int64_t out_row_stride;
  int64_t out_head_stride;
  float* softmax_lse; /* [num_heads, rows], or null */
  int64_t lse_head_stride;
  int64_t rows;
  int32_t num_heads;
  int32_t head_dim_v; /* a multiple of 4, like the strides of `out`s */
} onepass_merge_params;

ONEPASS_API onepass_status onepass_attention_merge(const onepass_device* device, const onepass_merge_params* params,
                                                   void* stream, char* message, size_t message_size);

/* ---- New keys and values into the cache ----
 *
 * One kernel: request b's new keys and values go behind the cache_seqlens[b] that its cache holds, rotated on the way
 * if rotary_dim > 0, the queries are rotated into q_out, and the lengths and beginnings that attention then takes are
 * written to seqlens_k_out and begins_out. What would go past the capacity is not stored. Each of the three parts may
 * be left out. */
typedef struct onepass_append_kv_params {
  size_t struct_size;
  int32_t dtype; /* of everything: ONEPASS_FLOAT16 or ONEPASS_BFLOAT16 */
  int32_t batch;
  int32_t num_heads;
  int32_t num_heads_kv;
  int32_t head_dim; /* a multiple of 8, like head_dim_v and all strides */
  int32_t head_dim_v;

  /* Keys that are there. */
  const int32_t* cache_seqlens; /* [batch], left padding included; null: from cu_seqlens_k, else seqlen_k each */
  const int32_t*
      cu_seqlens_k; /* [batch + 1], or null: request b begins at cache entry cache_batch_idx[b] (b when null) */
  const int32_t* cache_leftpad; /* [batch] unused rows at the front of each request; null: 0 */
  const int32_t* cache_batch_idx;
  int32_t seqlen_k;
  int32_t entry_rows;     /* rows from one cache entry to the next, in the numbers of begins_out */
  int32_t* seqlens_k_out; /* [batch] keys without the left padding, new ones included; or null */
  int32_t* begins_out;    /* [batch] first row of each request, for onepass_attention_params.cu_seqlens_k; or null */

  /* New keys and values: [batch, seqlen_new, num_heads_kv, head_dim], or [total_new, ...] with cu_seqlens_new. Null:
   * none. */
  const void* k_new;
  const void* v_new;
  int64_t k_new_batch_stride;
  int64_t k_new_row_stride;
  int64_t k_new_head_stride;
  int64_t v_new_batch_stride;
  int64_t v_new_row_stride;
  int64_t v_new_head_stride;
  const int32_t* cu_seqlens_new; /* [batch + 1], or null */
  int32_t seqlen_new;
  int32_t total_new; /* rows in all */

  /* The cache: pages [num_pages, page_size, num_heads_kv, head_dim], or without a page_table one entry a request
   * [entries, page_size = capacity, ...]. */
  void* k_cache;
  void* v_cache;
  int64_t k_page_stride;
  int64_t k_row_stride;
  int64_t k_head_stride;
  int64_t v_page_stride;
  int64_t v_row_stride;
  int64_t v_head_stride;
  const int32_t* page_table; /* [batch, page_table_stride] */
  int64_t page_table_stride;
  int32_t page_size;
  int32_t pages_per_request; /* columns of page_table that may be used */

  /* Rotation: key i of the new ones by row rotary_seqlens[b] + i (cache_seqlens[b] + i when null) of the tables. */
  const void* rotary_cos; /* [rotary_rows, rotary_dim / 2] */
  const void* rotary_sin;
  const int32_t* rotary_seqlens; /* [batch], or null */
  int32_t rotary_rows;
  int32_t rotary_dim;         /* a multiple of 16; 0: no rotation */
  int32_t rotary_interleaved; /* 1: elements 2i and 2i + 1 are a pair, 0: i and i + rotary_dim / 2 */

  /* Queries to rotate: [batch, seqlen_q, num_heads, head_dim], or [total_q, ...] with cu_seqlens_q. Null: none. */
  int32_t rotate_queries_by_row; /* 1: query i by the row of new key i, 0: all by that of new key 0 */
  const void* q;
  void* q_out; /* [total_q, num_heads, head_dim] without gaps */
  int64_t q_batch_stride;
  int64_t q_row_stride;
  int64_t q_head_stride;
  const int32_t* cu_seqlens_q; /* [batch + 1], or null */
  int32_t seqlen_q;
  int32_t total_q;
} onepass_append_kv_params;

ONEPASS_API onepass_status onepass_append_kv(const onepass_device* device, const onepass_append_kv_params* params,
                                             void* stream, char* message, size_t message_size);

/* Which capture the stream is part of; 0 when it is not being captured. For callers that keep scratch: memory that a
 * captured plan uses must come from that capture. */
ONEPASS_API onepass_status onepass_stream_capture_id(void* stream, uint64_t* id, char* message, size_t message_size);

/* ---- Defaults ---- */

static inline onepass_attention_params onepass_attention_params_default(void) {
#ifdef __cplusplus
  onepass_attention_params params = {};
#else
  onepass_attention_params params = {0};
#endif
  params.struct_size = sizeof(params);
  params.softmax_scale = 1.0f;
  params.window_left = -1;
  params.window_right = -1;
  return params;
}

static inline onepass_merge_params onepass_merge_params_default(void) {
#ifdef __cplusplus
  onepass_merge_params params = {};
#else
  onepass_merge_params params = {0};
#endif
  params.struct_size = sizeof(params);
  return params;
}

static inline onepass_append_kv_params onepass_append_kv_params_default(void) {
#ifdef __cplusplus
  onepass_append_kv_params params = {};
#else
  onepass_append_kv_params params = {0};
#endif
  params.struct_size = sizeof(params);
  return params;
}

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* ONEPASS_ATTENTION_H_ */
