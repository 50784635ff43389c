// What onepass bench attention times.
#include <algorithm>

#include "cli/bench_attention.h"

namespace onepass {
namespace {

std::vector<AttentionShape> cpu_shapes(int page_size) {
  const auto shape = [](const char* name, const char* workload, int batch, int seqlen_q, int seqlen_k, int heads,
                        int heads_kv, int head_dim, int page) {
    return AttentionShape{name, workload, batch, seqlen_q, seqlen_k, heads, heads_kv, head_dim, head_dim, page};
  };
  return {shape("prefill 2048", "prefill", 1, 2048, 2048, 32, 8, 128, page_size),
          shape("prefill 512", "prefill", 1, 512, 512, 32, 8, 128, page_size),
          shape("prefill 2048, hd 64", "prefill", 1, 2048, 2048, 14, 2, 64, page_size),
          shape("prefill 2048, MHA", "prefill", 1, 2048, 2048, 8, 8, 128, page_size),
          shape("prefill 1024, hd 256", "prefill", 1, 1024, 1024, 8, 4, 256, page_size),
          shape("extend 128 after 4096", "extend", 1, 128, 4224, 32, 8, 128, page_size),
          shape("decode 8192", "decode", 1, 1, 8192, 32, 8, 128, page_size),
          shape("decode 8192, page 1", "decode", 1, 1, 8192, 32, 8, 128, 1),
          shape("decode 8192, page 16", "decode", 1, 1, 8192, 32, 8, 128, 16),
          shape("decode 8192, page 256", "decode", 1, 1, 8192, 32, 8, 128, 256),
          shape("decode 8192, MHA", "decode", 1, 1, 8192, 8, 8, 128, page_size),
          shape("decode 8192, MQA", "decode", 1, 1, 8192, 8, 1, 128, page_size),
          shape("decode 8192, hd 64", "decode", 1, 1, 8192, 14, 2, 64, page_size),
          shape("decode 1024, batch 8", "decode", 8, 1, 1024, 32, 8, 128, page_size)};
}

// Prompts of `seqlen` tokens that make 16k in all, contiguous.
AttentionShape prefill(int seqlen, bool causal, int heads, int heads_kv, int head_dim, int head_dim_v) {
  AttentionShape s{.workload = "prefill", .batch = 16384 / seqlen, .seqlen_q = seqlen, .seqlen_k = seqlen};
  s.num_heads = heads;
  s.num_heads_kv = heads_kv;
  s.head_dim = head_dim;
  s.head_dim_v = head_dim_v;
  s.causal = causal;
  s.name = str_cat("prefill ", causal ? "causal " : "full ", seqlen);
  if (head_dim != 128 || head_dim_v != 128) s.name += str_cat(", hd ", head_dim);
  if (head_dim_v != head_dim) s.name += str_cat("/", head_dim_v);
  if (heads != heads_kv) s.name += str_cat(", ", heads, "/", heads_kv);
  return s;
}

AttentionShape extend(int batch, int prefix, int rows, int page_size) {
  AttentionShape s{.workload = "extend", .batch = batch, .seqlen_q = rows, .seqlen_k = prefix + rows};
  s.num_heads = 32;
  s.num_heads_kv = 8;
  s.page_size = page_size;
  s.name = str_cat("extend ", prefix, "+", rows, ", b", batch);
  if (page_size > 0) {
    s.name += str_cat(", page ", page_size);
  } else {
    s.name += str_cat(", contiguous");
  }
  return s;
}

AttentionShape decode(int batch, int context, int page_size, int rows = 1, int head_dim = 128) {
  AttentionShape s{.workload = "decode", .batch = batch, .seqlen_q = rows, .seqlen_k = context};
  s.num_heads = 32;
  s.num_heads_kv = 8;
  s.head_dim = s.head_dim_v = head_dim;
  s.page_size = page_size;
  s.name = str_cat("decode b", batch, " ctx ", context, ", page ", page_size);
  if (rows > 1) s.name += str_cat(", ", rows, " rows");
  if (head_dim != 128) s.name += str_cat(", hd ", head_dim);
  return s;
}

std::vector<AttentionShape> cuda_shapes() {
  std::vector<AttentionShape> shapes;
  for (const bool causal : {true, false}) {
    for (int seqlen = 512; seqlen <= 16384; seqlen *= 2) shapes.push_back(prefill(seqlen, causal, 16, 16, 128, 128));
  }
  for (int seqlen = 1024; seqlen <= 16384; seqlen *= 4) shapes.push_back(prefill(seqlen, true, 32, 8, 128, 128));
  for (const bool causal : {true, false}) {
    shapes.push_back(prefill(4096, causal, 32, 32, 64, 64));
    shapes.push_back(prefill(4096, causal, 8, 8, 256, 256));
    shapes.push_back(prefill(4096, causal, 16, 16, 192, 128));
  }
  for (const int page_size : {0, 1, 16, 64, 128}) shapes.push_back(extend(4, 4096, 1024, page_size));
  for (const int page_size : {0, 64}) {
    shapes.push_back(extend(4, 0, 4096, page_size));
    shapes.push_back(extend(4, 16384, 512, page_size));
    shapes.push_back(extend(16, 512, 128, page_size));
    shapes.push_back(extend(1, 32768, 2048, page_size));
  }
  for (const int page_size : {1, 16, 64, 128, 256}) shapes.push_back(decode(32, 8192, page_size));
  for (const auto& [batch, context] : {std::pair{128, 4096}, {256, 1024}, {64, 2048}}) {
    shapes.push_back(decode(batch, context, 64));
  }
  for (const auto& [batch, context] : {std::pair{1, 1024},
                                       {1, 4096},
                                       {1, 16384},
                                       {1, 65536},
                                       {4, 2048},
                                       {8, 1024},
                                       {8, 4096},
                                       {16, 4096},
                                       {32, 1024},
                                       {64, 512}}) {
    shapes.push_back(decode(batch, context, 64));
  }
  for (const int head_dim : {64, 256}) shapes.push_back(decode(32, 4096, 64, 1, head_dim));
  for (const int rows : {2, 4, 8, 16}) shapes.push_back(decode(32, 8192, 64, rows));
  return shapes;
}

AttentionShape given_shape(const BenchAttentionOptions& options) {
  AttentionShape s{.name = "given", .workload = "extend", .batch = options.batch};
  if (options.seqlen_q == options.seqlen_k) s.workload = "prefill";
  if (options.seqlen_q == 1) s.workload = "decode";
  s.seqlen_q = options.seqlen_q;
  s.seqlen_k = options.seqlen_k;
  s.num_heads = options.num_heads;
  s.num_heads_kv = options.num_heads_kv;
  s.head_dim = options.head_dim;
  s.head_dim_v = options.head_dim_v > 0 ? options.head_dim_v : options.head_dim;
  s.page_size = options.page_size;
  s.causal = !options.full;
  s.softcap = options.softcap;
  return s;
}

}  // namespace

std::vector<AttentionShape> bench_attention_shapes(const BenchAttentionOptions& options) {
  if (options.num_heads > 0) return {given_shape(options)};
  std::vector<AttentionShape> shapes = options.device == "cpu" ? cpu_shapes(options.page_size) : cuda_shapes();
  if (options.workload != "all") {
    std::erase_if(shapes, [&](const AttentionShape& shape) { return shape.workload != options.workload; });
  }
  return shapes;
}

double attention_flops(const AttentionShape& shape) {
  const double rows = shape.seqlen_q, keys = shape.seqlen_k;
  const double pairs = shape.causal ? rows * keys - rows * rows / 2 : rows * keys;
  // A single row sees its own key too: half a square of one would be half a key.
  return 2.0 * shape.batch * shape.num_heads * (shape.head_dim + shape.head_dim_v) * (rows > 1 ? pairs : keys);
}

double attention_kv_bytes(const AttentionShape& shape, DType dtype) {
  return static_cast<double>(size_of(dtype)) * shape.batch * shape.seqlen_k * shape.num_heads_kv *
         (shape.head_dim + shape.head_dim_v);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace onepass
