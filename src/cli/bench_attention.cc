// onepass bench attention: the attention kernel against what the machine can do.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_format.h"
#include "attention/cpu/flash_attention.h"
#include "base/memory_info.h"
#include "cli/command.h"
#include "cli/options.h"
#include "kernels/cpu/peaks.h"
#include "tensor/buffer.h"

namespace onepass {
namespace {

struct BenchAttentionOptions {
  std::string device = "cpu";
  std::string isa = "auto";
  std::string dtype = "bfloat16";
  int threads = 0;
  int page_size = 64;
  int num_heads = 0, num_heads_kv = 0, head_dim = 0;  // all three: this shape instead of the standard ones
  int batch = 1, seqlen_q = 1, seqlen_k = 8192;
  double seconds = 1.0;
  bool json = false;
};

struct Shape {
  std::string name;
  int batch, seqlen_q, seqlen_k, num_heads, num_heads_kv, head_dim, page_size;
};

Status check_memory(const Shape& shape, DType dtype) {
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
  static StatusOr<Problem> make(const Shape& shape, DType dtype) {
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

  // Operations of the causal half, and bytes of K and V.
  double flops() const {
    const double q = shape_.seqlen_q, k = shape_.seqlen_k;
    return 4.0 * shape_.batch * shape_.num_heads * shape_.head_dim * (q * k - q * (q - 1) / 2);
  }
  double kv_bytes() const {
    return 2.0 * shape_.batch * shape_.seqlen_k * shape_.num_heads_kv * shape_.head_dim *
           static_cast<double>(size_of(dtype_));
  }

 private:
  Shape shape_;
  DType dtype_ = DType::kBF16;
  std::vector<Buffer> k_, v_;
  std::vector<float> q_, out_;
  std::vector<int32_t> cu_seqlens_q_, cache_seqlens_, page_table_;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

std::vector<Shape> standard_shapes(int page_size) {
  return {{"prefill 2048", 1, 2048, 2048, 32, 8, 128, page_size},
          {"prefill 512", 1, 512, 512, 32, 8, 128, page_size},
          {"prefill 2048, hd 64", 1, 2048, 2048, 14, 2, 64, page_size},
          {"prefill 2048, MHA", 1, 2048, 2048, 8, 8, 128, page_size},
          {"prefill 1024, hd 256", 1, 1024, 1024, 8, 4, 256, page_size},
          {"extend 128 after 4096", 1, 128, 4224, 32, 8, 128, page_size},
          {"decode 8192", 1, 1, 8192, 32, 8, 128, page_size},
          {"decode 8192, page 1", 1, 1, 8192, 32, 8, 128, 1},
          {"decode 8192, page 16", 1, 1, 8192, 32, 8, 128, 16},
          {"decode 8192, page 256", 1, 1, 8192, 32, 8, 128, 256},
          {"decode 8192, MHA", 1, 1, 8192, 8, 8, 128, page_size},
          {"decode 8192, MQA", 1, 1, 8192, 8, 1, 128, page_size},
          {"decode 8192, hd 64", 1, 1, 8192, 14, 2, 64, page_size},
          {"decode 1024, batch 8", 8, 1, 1024, 32, 8, 128, page_size}};
}

// What the options' own ranges do not say.
Status check(const BenchAttentionOptions& options) {
  if (options.device != "cpu") {
    return unimplemented("bench attention: device: expected cpu, found \"", options.device,
                         "\" (this version has CPU kernels)");
  }
  ONEPASS_RETURN_IF_ERROR(parse_cpu_isa(options.isa).status());
  ONEPASS_RETURN_IF_ERROR(parse_float_dtype(options.dtype).status());
  if (options.num_heads == 0) return ok_status();
  if (options.num_heads_kv <= 0 || options.num_heads % options.num_heads_kv != 0 || options.head_dim <= 0) {
    return invalid_argument("bench attention: expected --heads, --kv-heads that divide them and --head-dim");
  }
  if (options.seqlen_q > options.seqlen_k) {
    return invalid_argument("bench attention: --seqlen-q: expected at most --seqlen-k = ", options.seqlen_k, ", found ",
                            options.seqlen_q);
  }
  return ok_status();
}

Status run(const BenchAttentionOptions& options) {
  ONEPASS_ASSIGN_OR_RETURN(const CpuIsa isa, parse_cpu_isa(options.isa));
  ONEPASS_ASSIGN_OR_RETURN(const DType dtype, parse_float_dtype(options.dtype));
  ThreadPool pool(options.threads > 0 ? options.threads : available_processors());
  const Stream stream{.pool = &pool, .isa = isa};
  std::vector<Shape> shapes = standard_shapes(options.page_size);
  if (options.num_heads > 0) {
    shapes = {{"given", options.batch, options.seqlen_q, options.seqlen_k, options.num_heads, options.num_heads_kv,
               options.head_dim, options.page_size}};
  }
  for (const Shape& shape : shapes) ONEPASS_RETURN_IF_ERROR(check_memory(shape, dtype));
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
  for (const Shape& shape : shapes) {
    ONEPASS_ASSIGN_OR_RETURN(Problem problem, Problem::make(shape, dtype));
    ONEPASS_RETURN_IF_ERROR(flash_attention_cpu_supports(problem.params(0)));
    FlashAttentionWorkspace workspace;
    using Clock = std::chrono::steady_clock;
    // The kernel and a plain read of the same K and V in turns: neighbours on the machine slow both.
    std::vector<double> times, reads;
    const Clock::time_point begin = Clock::now();
    for (int i = 0; times.size() < 5 || std::chrono::duration<double>(Clock::now() - begin).count() < options.seconds;
         ++i) {
      const AttentionParams params = problem.params(i % problem.copies());
      const Clock::time_point start = Clock::now();
      flash_attention_cpu(params, workspace, stream);
      if (i > 0) times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      reads.push_back(problem.seconds_to_read((i + problem.copies() / 2) % problem.copies(), stream));
    }
    const double seconds = median(times), read_seconds = median(reads);
    const double gflops = problem.flops() / seconds * 1e-9, gbytes = problem.kv_bytes() / seconds * 1e-9;
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

}  // namespace

void add_bench_attention_command(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("attention", "The attention kernel, beside the machine's own peaks");
  auto options = std::make_shared<BenchAttentionOptions>();
  command->add_option("--device", options->device, "cpu")->capture_default_str();
  command->add_option("--dtype", options->dtype, "of K and V: float32, float16 or bfloat16")->capture_default_str();
  command->add_option("--isa", options->isa, "auto, portable, avx2, avx512 or avx512bf16")->capture_default_str();
  command->add_option("--threads", options->threads, "0: one for each processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--page-size", options->page_size)->check(CLI::Range(1, 256))->capture_default_str();
  auto* heads = command
                    ->add_option("--heads", options->num_heads,
                                 "with --kv-heads and --head-dim: one shape instead of the standard ones")
                    ->check(CLI::Range(1, 4096));
  command->add_option("--kv-heads", options->num_heads_kv)->check(CLI::Range(1, 4096))->needs(heads);
  command->add_option("--head-dim", options->head_dim)->check(CLI::Range(1, 512))->needs(heads);
  command->add_option("--batch", options->batch)->check(CLI::Range(1, 4096))->capture_default_str()->needs(heads);
  command->add_option("--seqlen-q", options->seqlen_q)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->needs(heads);
  command->add_option("--seqlen-k", options->seqlen_k)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->needs(heads);
  command->add_option("--seconds", options->seconds, "time for each shape")
      ->check(CLI::Range(0.01, 600.0))
      ->capture_default_str();
  command->add_flag("--json", options->json);
  command->callback([options, &action] {
    refuse_usage(check(*options));
    action = [options] { return run(*options); };
  });
}

}  // namespace onepass
