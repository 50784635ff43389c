// onepass bench attention on a processor, beside the machine's own peaks.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_format.h"
#include "attention/cpu/flash_attention.h"
#include "base/memory_info.h"
#include "cli/bench_attention.h"
#include "kernels/cpu/peaks.h"
#include "tensor/buffer.h"

namespace onepass {
namespace {

Status check_memory(const AttentionShape& shape, DType dtype) {
  const double bytes = 2.0 * shape.batch * (static_cast<double>(shape.seqlen_k) + shape.page_size) *
                       shape.num_heads_kv * shape.head_dim * static_cast<double>(size_of(dtype));
  const int64_t available = available_memory();
  if (bytes <= 0.9 * static_cast<double>(available)) return ok_status();
  return resource_exhausted("bench attention: K and V of ", bytes, " bytes, expected at most 9/10 of the ", available,
                            " bytes available");
}

// The pages of `copies` caches, so that none is found in the processor's caches when its turn comes.
class Problem {
 public:
  static StatusOr<Problem> make(const AttentionShape& shape, DType dtype) {
    Problem p;
    p.shape_ = shape;
    const int64_t pages_each = (shape.seqlen_k + shape.page_size - 1) / shape.page_size;
    const int64_t pages = pages_each * shape.batch;
    const int64_t row = int64_t{shape.num_heads_kv} * shape.head_dim;
    const int64_t bytes = pages * shape.page_size * row * static_cast<int64_t>(size_of(dtype));
    constexpr int64_t kCold = int64_t{256} << 20;
    const int copies = static_cast<int>(std::clamp<int64_t>(kCold / (2 * bytes) + 1, 1, 64));
    std::mt19937 random(1);
    for (int copy = 0; copy < copies; ++copy) {
      for (std::vector<Buffer>* pool : {&p.k_, &p.v_}) {
        ONEPASS_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(bytes));
        // Numbers in [-1, 1) with period 4093: random ones would take longer to draw than the benchmark runs.
        float block[4093];
        for (float& value : block) value = static_cast<float>(random() % 2048) / 1024.0f - 1.0f;
        for (int64_t at = 0; at < pages * shape.page_size * row; at += 4093) {
          const int64_t count = std::min<int64_t>(4093, pages * shape.page_size * row - at);
          convert_from_float(block, dtype, count, buffer.data() + at * static_cast<int64_t>(size_of(dtype)));
        }
        pool->push_back(std::move(buffer));
      }
    }
    p.page_table_.resize(pages);
    for (int64_t page = 0; page < pages; ++page) p.page_table_[page] = static_cast<int32_t>(page);
    std::shuffle(p.page_table_.begin(), p.page_table_.end(), random);
    const int total_q = shape.batch * shape.seqlen_q;
    p.q_.resize(int64_t{total_q} * shape.num_heads * shape.head_dim);
    for (float& value : p.q_) value = static_cast<float>(random() % 2048) / 1024.0f - 1.0f;
    p.out_.resize(p.q_.size());
    for (int b = 0; b <= shape.batch; ++b) p.cu_seqlens_q_.push_back(b * shape.seqlen_q);
    p.cache_seqlens_.assign(shape.batch, shape.seqlen_k);
    p.dtype_ = dtype;
    return p;
  }

  int copies() const { return static_cast<int>(k_.size()); }

  AttentionParams params(int copy) {
    const int64_t row = int64_t{shape_.num_heads_kv} * shape_.head_dim;
    const int64_t q_row = int64_t{shape_.num_heads} * shape_.head_dim;
    return {.q = q_.data(),
            .q_row_stride = q_row,
            .q_head_stride = shape_.head_dim,
            .k = k_[copy].data(),
            .v = v_[copy].data(),
            .kv_dtype = dtype_,
            .k_page_stride = row * shape_.page_size,
            .k_row_stride = row,
            .k_head_stride = shape_.head_dim,
            .v_page_stride = row * shape_.page_size,
            .v_row_stride = row,
            .v_head_stride = shape_.head_dim,
            .total_kv_rows = static_cast<int64_t>(page_table_.size()) * shape_.page_size,
            .out = out_.data(),
            .out_row_stride = q_row,
            .out_head_stride = shape_.head_dim,
            .batch = shape_.batch,
            .total_q = shape_.batch * shape_.seqlen_q,
            .max_seqlen_q = shape_.seqlen_q,
            .num_heads = shape_.num_heads,
            .num_heads_kv = shape_.num_heads_kv,
            .head_dim = shape_.head_dim,
            .head_dim_v = shape_.head_dim,
            .cu_seqlens_q = cu_seqlens_q_.data(),
            .cache_seqlens = cache_seqlens_.data(),
            .page_table = page_table_.data(),
            .page_table_stride = (shape_.seqlen_k + shape_.page_size - 1) / shape_.page_size,
            .page_size = shape_.page_size,
            .softmax_scale = 0.1f,
            .causal = true};
  }

  // A plain read of a copy of K and V.
  double seconds_to_read(int copy, const Stream& stream) const {
    return onepass::seconds_to_read(k_[copy].data(), static_cast<int64_t>(k_[copy].size()), stream) +
           onepass::seconds_to_read(v_[copy].data(), static_cast<int64_t>(v_[copy].size()), stream);
  }

 private:
  AttentionShape shape_;
  DType dtype_ = DType::kBF16;
  std::vector<Buffer> k_, v_;
  std::vector<float> q_, out_;
  std::vector<int32_t> cu_seqlens_q_, cache_seqlens_, page_table_;
};

}  // namespace

Status bench_attention_cpu(const BenchAttentionOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const CpuIsa isa, parse_cpu_isa(options.isa));
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, parse_float_dtype(options.dtype));
  const double seconds_each = options.seconds > 0.0 ? options.seconds : 1.0;
  ThreadPool pool(options.threads > 0 ? options.threads : available_processors());
  const Stream stream{.pool = &pool, .isa = isa};
  const std::vector<AttentionShape> shapes = bench_attention_shapes(options);
  for (const AttentionShape& shape : shapes) ONEPASS_RETURN_IF_ERROR(check_memory(shape, dtype));
  const double bandwidth = measure_dram_read_bandwidth(stream);
  const double fp32 = measure_fp32_fma_peak(stream), bf16 = measure_bf16_dot_peak(stream);
  const double peak = dtype == DType::kBF16 && bf16 > 0 ? bf16 : fp32;
  nlohmann::json output = {{"threads", pool.num_threads()},    {"isa", to_string(isa)},
                           {"dtype", to_string(dtype)},        {"dram_read_gb_per_s", bandwidth},
                           {"fp32_fma_gflop_per_s", fp32},     {"bf16_dot_gflop_per_s", bf16},
                           {"shapes", nlohmann::json::array()}};
  if (!options.json) {
    std::printf(
        "%d threads, %s, K and V in %s; machine: %.1f GB/s DRAM read, %.0f GFLOP/s fp32, %.0f GFLOP/s bf16 dot\n",
        pool.num_threads(), std::string(to_string(isa)).c_str(), std::string(to_string(dtype)).c_str(), bandwidth, fp32,
        bf16);
    std::printf("%-24s %9s %11s %9s %9s %9s\n", "causal, caches cold", "ms", "GFLOP/s", "of peak", "KV GB/s",
                "of read");
  }
  for (const AttentionShape& shape : shapes) {
    ONEPASS_ASSIGN_OR_RETURN(Problem problem, Problem::make(shape, dtype));
    ONEPASS_RETURN_IF_ERROR(flash_attention_cpu_supports(problem.params(0)));
    FlashAttentionWorkspace workspace;
    using Clock = std::chrono::steady_clock;
    // The kernel and a plain read of the same K and V in turns: neighbours on the machine slow both.
    std::vector<double> times, reads;
    const Clock::time_point begin = Clock::now();
    for (int i = 0; times.size() < 5 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds_each;
         ++i) {
      const AttentionParams params = problem.params(i % problem.copies());
      const Clock::time_point start = Clock::now();
      flash_attention_cpu(params, workspace, stream);
      if (i > 0) times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      reads.push_back(problem.seconds_to_read((i + problem.copies() / 2) % problem.copies(), stream));
    }
    const double seconds = median(times), read_seconds = median(reads);
    const double gflops = attention_flops(shape) / seconds * 1e-9,
                 gbytes = attention_kv_bytes(shape, dtype) / seconds * 1e-9;
    if (!options.json) {
      std::printf("%-24s %9.3f %11.1f %8.1f%% %9.1f %8.1f%%\n", shape.name.c_str(), seconds * 1e3, gflops,
                  100 * gflops / peak, gbytes, 100 * read_seconds / seconds);
      std::fflush(stdout);
    }
    output["shapes"].push_back({{"name", shape.name},
                                {"batch", shape.batch},
                                {"seqlen_q", shape.seqlen_q},
                                {"seqlen_k", shape.seqlen_k},
                                {"num_heads", shape.num_heads},
                                {"num_heads_kv", shape.num_heads_kv},
                                {"head_dim", shape.head_dim},
                                {"page_size", shape.page_size},
                                {"ms", seconds * 1e3},
                                {"gflop_per_s", gflops},
                                {"of_peak", gflops / peak},
                                {"kv_gb_per_s", gbytes},
                                {"plain_read_ms", read_seconds * 1e3},
                                {"of_read", read_seconds / seconds}});
  }
  if (options.json) std::printf("%s\n", output.dump(2).c_str());
  return ok_status();
}

}  // namespace onepass
