// onepass bench attention, in parts: the command line, the shapes, and the measurement on each kind of device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"

namespace onepass {

struct BenchAttentionOptions {
  std::string device = "cpu";
  std::string workload = "all";
  std::string kernel = "all";  // CUDA only
  std::string isa = "auto";    // CPU only
  std::string dtype = "bfloat16";
  int threads = 0;  // CPU only
  int page_size = 64;
  int num_heads = 0, num_heads_kv = 0, head_dim = 0;  // all three: this shape instead of the standard ones
  int head_dim_v = 0;                                 // 0: head_dim
  int batch = 1, seqlen_q = 1, seqlen_k = 8192;
  bool full = false;
  float softcap = 0.0f;    // CUDA only
  bool with_plan = false;  // CUDA only
  bool check = false;      // CUDA only
  double seconds = 0.0;    // 0: the device's default
  bool json = false;
};

// One problem to time: `batch` requests of the same lengths.
struct AttentionShape {
  std::string name;
  std::string workload;  // "prefill", "extend" or "decode"
  int batch = 1, seqlen_q = 1, seqlen_k = 1;
  int num_heads = 1, num_heads_kv = 1, head_dim = 128, head_dim_v = 128;
  int page_size = 0;  // 0: contiguous
  bool causal = true;
  float softcap = 0.0f;
};

// The standard shapes of the device, or the one that the options give, of the workload that is asked for.
std::vector<AttentionShape> bench_attention_shapes(const BenchAttentionOptions& options);

// Operations of a shape: 2 (head_dim + head_dim_v) for each query head and pair of query and key. Causal counts half of
// the square of the new tokens, as FlashAttention's figures do.
double attention_flops(const AttentionShape& shape);
// Of K and V.
double attention_kv_bytes(const AttentionShape& shape, DType dtype);

double median(std::vector<double> values);

// Measures and prints.
Status bench_attention_cpu(const BenchAttentionOptions& options);
Status bench_attention_cuda(const BenchAttentionOptions& options);

}  // namespace onepass
