/* One decoding step of two sequences whose keys and values lie in pages of 16 tokens, compared with a loop on the
 * processor. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <onepass/attention.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, HEADS = 8, HEADS_KV = 2, DIM = 128, PAGE = 16, PAGES_EACH = 8, PAGES = BATCH * PAGES_EACH };

static int fail(const char* what, const char* why) {
  fprintf(stderr, "decode: %s: %s\n", what, why);
  return 1;
}

/* bfloat16 is the upper half of a float. */
static float random_bf16(uint16_t* to) {
  float x = 2.0f * (float)rand() / (float)RAND_MAX - 1.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0xffff0000u;
  *to = (uint16_t)(bits >> 16);
  memcpy(&x, &bits, sizeof bits);
  return x;
}

static float from_bf16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Memory on the GPU that holds `data`, or zeros; ends the program where there is none. */
static void* on_gpu(const void* data, size_t bytes) {
  void* memory = NULL;
  cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess && data == NULL) error = cudaMemset(memory, 0, bytes);
  if (error == cudaSuccess && data != NULL) error = cudaMemcpy(memory, data, bytes, cudaMemcpyHostToDevice);
  if (error != cudaSuccess) exit(fail("memory on the GPU", cudaGetErrorString(error)));
  return memory;
}

static uint16_t q_bits[BATCH][HEADS][DIM], k_bits[PAGES][PAGE][HEADS_KV][DIM], v_bits[PAGES][PAGE][HEADS_KV][DIM];
static float q[BATCH][HEADS][DIM], k[PAGES][PAGE][HEADS_KV][DIM], v[PAGES][PAGE][HEADS_KV][DIM];

/* softmax(q k) v of one head, the keys in the order of the page table. */
static void attend(int b, int h, int length, const int32_t* pages, float scale, float* out) {
  float denominator = 0.0f;
  memset(out, 0, DIM * sizeof *out);
  for (int j = 0; j < length; ++j) {
    const int page = pages[j / PAGE], row = j % PAGE, head = h / (HEADS / HEADS_KV);
    float score = 0.0f;
    for (int d = 0; d < DIM; ++d) score += q[b][h][d] * k[page][row][head][d];
    const float weight = expf(score * scale); /* scores are small here */
    denominator += weight;
    for (int d = 0; d < DIM; ++d) out[d] += weight * v[page][row][head][d];
  }
  for (int d = 0; d < DIM; ++d) out[d] /= denominator;
}

int main(void) {
  char message[256];
  onepass_device* device;
  if (onepass_device_open(0, &device, message, sizeof message) != ONEPASS_OK) return fail("GPU 0", message);

  for (size_t i = 0; i < sizeof q / sizeof(float); ++i) (&q[0][0][0])[i] = random_bf16(&q_bits[0][0][0] + i);
  for (size_t i = 0; i < sizeof k / sizeof(float); ++i) {
    (&k[0][0][0][0])[i] = random_bf16(&k_bits[0][0][0][0] + i);
    (&v[0][0][0][0])[i] = random_bf16(&v_bits[0][0][0][0] + i);
  }
  const int32_t lengths[BATCH] = {100, 37}, cu_seqlens_q[BATCH + 1] = {0, 1, 2};
  int32_t page_table[BATCH][PAGES_EACH]; /* every second page */
  for (int i = 0; i < PAGES; ++i) page_table[i % BATCH][i / BATCH] = i;

  onepass_attention_params params = onepass_attention_params_default();
  params.q_dtype = params.kv_dtype = params.out_dtype = ONEPASS_BFLOAT16;
  params.batch = params.total_q = BATCH;
  params.max_seqlen_q = 1;
  params.num_heads = HEADS;
  params.num_heads_kv = HEADS_KV;
  params.head_dim = params.head_dim_v = DIM;
  params.q = on_gpu(q_bits, sizeof q_bits);
  params.out = on_gpu(NULL, sizeof q_bits);
  params.q_head_stride = params.out_head_stride = DIM;
  params.q_row_stride = params.out_row_stride = HEADS * DIM;
  params.k = on_gpu(k_bits, sizeof k_bits);
  params.v = on_gpu(v_bits, sizeof v_bits);
  params.k_head_stride = params.v_head_stride = DIM;
  params.k_row_stride = params.v_row_stride = HEADS_KV * DIM;
  params.k_page_stride = params.v_page_stride = PAGE * HEADS_KV * DIM;
  params.total_kv_rows = PAGES * PAGE;
  params.page_table = on_gpu(page_table, sizeof page_table);
  params.page_table_stride = PAGES_EACH;
  params.page_size = PAGE;
  params.cu_seqlens_q = on_gpu(cu_seqlens_q, sizeof cu_seqlens_q);
  params.cache_seqlens = on_gpu(lengths, sizeof lengths);
  params.softmax_scale = 1.0f / sqrtf((float)DIM);
  params.causal = 1;

  const onepass_attention_kernel* kernel;
  int64_t bytes = 0;
  if (onepass_attention_choose(device, &params, "auto", &kernel, message, sizeof message) != ONEPASS_OK ||
      onepass_attention_scratch_bytes(device, kernel, &params, &bytes, message, sizeof message) != ONEPASS_OK) {
    return fail("attention", message);
  }
  void* const scratch = on_gpu(NULL, (size_t)bytes);
  if (onepass_attention_plan(device, kernel, &params, scratch, bytes, NULL, message, sizeof message) != ONEPASS_OK ||
      onepass_attention_run(device, kernel, &params, scratch, bytes, NULL, message, sizeof message) != ONEPASS_OK) {
    return fail("attention", message);
  }
  static uint16_t out_bits[BATCH][HEADS][DIM];
  const cudaError_t error = cudaMemcpy(out_bits, params.out, sizeof out_bits, cudaMemcpyDeviceToHost);
  if (error != cudaSuccess) return fail("attention", cudaGetErrorString(error));

  float largest = 0.0f;
  for (int b = 0; b < BATCH; ++b) {
    for (int h = 0; h < HEADS; ++h) {
      float expected[DIM];
      attend(b, h, lengths[b], page_table[b], params.softmax_scale, expected);
      for (int d = 0; d < DIM; ++d) {
        const float difference = fabsf(from_bf16(out_bits[b][h][d]) - expected[d]);
        if (isnan(difference) || difference > largest) largest = difference; /* fmaxf() would pass over NaN */
      }
    }
  }
  printf("kernel %s: largest difference %.5f\n", onepass_attention_kernel_name(kernel), largest);
  onepass_device_close(device); /* the rest ends with the program */
  if (!(largest <= 0.01f)) return fail("attention", "the GPU's result differs from the processor's");
  return 0;
}
