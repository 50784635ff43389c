// onepass bench attention: the attention kernels against what the device can do.
#include "cli/bench_attention.h"

#include "attention/cuda/flash_attention_cuda.h"
#include "base/cpu_features.h"
#include "cli/command.h"
#include "cli/options.h"

namespace onepass {
namespace {

Status check_kernel(const BenchAttentionOptions& options) {
  if (options.kernel == "all" || options.kernel == "auto" || cuda_attention_kernels().empty()) return ok_status();
  std::string names;
  for (const CudaAttentionKernel* kernel : cuda_attention_kernels()) {
    if (kernel->name == options.kernel) return ok_status();
    names += str_cat(", ", kernel->name);
  }
  return invalid_argument("bench attention: --kernel: expected one of all, auto", names, ", found \"", options.kernel,
                          "\"");
}

// What the options' own ranges do not say. Whether --page-size was given: 64 is its default too.
Status check(const BenchAttentionOptions& options, bool page_size_given) {
  if (options.device != "cpu" && options.device != "cuda") {
    return invalid_argument("bench attention: device: expected cpu or cuda, found \"", options.device, "\"");
  }
  ONEPASS_RETURN_IF_ERROR(parse_float_dtype(options.dtype).status());
  ONEPASS_RETURN_IF_ERROR(check_kernel(options));
  if (options.device == "cpu") {
    ONEPASS_RETURN_IF_ERROR(parse_cpu_isa(options.isa).status());
    if (options.kernel != "all" || options.with_plan || options.check || options.full || options.head_dim_v > 0 ||
        options.softcap > 0.0f) {
      return invalid_argument(
          "bench attention: --kernel, --with-plan, --check, --full, --head-dim-v and --softcap: expected --device "
          "cuda, found cpu");
    }
    if (options.page_size == 0) {
      return invalid_argument("bench attention: --page-size: expected at least 1 with --device cpu, found 0");
    }
  } else if (options.threads != 0 || options.isa != "auto") {
    return invalid_argument("bench attention: --threads and --isa: expected --device cpu, found cuda");
  }
  if (options.num_heads == 0) {
    if (options.device == "cuda" && page_size_given) {  // its standard shapes have page sizes of their own
      return invalid_argument("bench attention: --page-size: expected --heads too, or --device cpu, found neither");
    }
    return ok_status();
  }
  if (options.num_heads_kv <= 0 || options.num_heads % options.num_heads_kv != 0 || options.head_dim <= 0) {
    return invalid_argument("bench attention: expected --heads, --kv-heads that divide them and --head-dim");
  }
  if (options.seqlen_q > options.seqlen_k) {
    return invalid_argument("bench attention: --seqlen-q: expected at most --seqlen-k = ", options.seqlen_k, ", found ",
                            options.seqlen_q);
  }
  return ok_status();
}

void add_shape_options(CLI::App& command, BenchAttentionOptions& options) {
  command.add_option("--page-size", options.page_size, "of K and V; cuda: with --heads, 0: contiguous")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  auto* heads = command
                    .add_option("--heads", options.num_heads,
                                "with --kv-heads and --head-dim: one shape instead of the standard ones")
                    ->check(CLI::Range(1, 4096))
                    ->excludes(command.get_option("--workload"));
  command.add_option("--kv-heads", options.num_heads_kv)->check(CLI::Range(1, 4096))->needs(heads);
  command.add_option("--head-dim", options.head_dim)->check(CLI::Range(1, 512))->needs(heads);
  command.add_option("--head-dim-v", options.head_dim_v, "if not --head-dim (cuda)")
      ->check(CLI::Range(1, 512))
      ->needs(heads);
  command.add_option("--batch", options.batch)->check(CLI::Range(1, 4096))->capture_default_str()->needs(heads);
  command.add_option("--seqlen-q", options.seqlen_q)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->needs(heads);
  command.add_option("--seqlen-k", options.seqlen_k)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->needs(heads);
  command.add_flag("--full", options.full, "not causal (cuda)")->needs(heads);
  command.add_option("--softcap", options.softcap, "of the scores (cuda)")->check(number_range(0.0, 1e6))->needs(heads);
}

}  // namespace

void add_bench_attention_command(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand("attention", "The attention kernels, beside the device's own peaks");
  auto options = std::make_shared<BenchAttentionOptions>();
  command->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
  command->add_option("--workload", options->workload, "which of the standard shapes: prefill, extend, decode or all")
      ->check(CLI::IsMember({"all", "prefill", "extend", "decode"}))
      ->capture_default_str();
  command
      ->add_option("--kernel", options->kernel,
                   "cuda: a kernel's name, auto (the one that the engine would choose) or all (but naive)")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "of K and V (cuda: of Q too): float32, float16 or bfloat16")
      ->capture_default_str();
  command->add_option("--isa", options->isa, "cpu: auto, portable, avx2, avx512 or avx512bf16")->capture_default_str();
  command->add_option("--threads", options->threads, "cpu; 0: one for each processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  add_shape_options(*command, *options);
  command->add_option("--seconds", options->seconds, "time for each shape (default: 1 on cpu, 0.2 on cuda)")
      ->check(number_range(0.01, 600.0));
  command->add_flag("--with-plan", options->with_plan,
                    "cuda: plan before each run; without it one plan serves all, as one serves all layers of a model");
  command->add_flag("--check", options->check, "cuda: compare rows of each result with the naive kernel");
  command->add_flag("--json", options->json);
  command->callback([command, options, &action] {
    refuse_usage(check(*options, command->count("--page-size") > 0));
    action = [options] {
      return options->device == "cpu" ? bench_attention_cpu(*options) : bench_attention_cuda(*options);
    };
  });
}

}  // namespace onepass
