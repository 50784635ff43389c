// Attention of a prompt over a prefix and a suffix of its keys, merged, is attention over all of them: how a prefix
// that many requests share is read once.
#include <cuda_runtime_api.h>
#include <onepass/attention.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kHeads = 8, kHeadsKv = 2, kDim = 128, kQueries = 48, kPrefix = 300, kSuffix = 48;

std::string message(256, '\0');

void check(onepass_status status) {
  if (status != ONEPASS_OK) throw std::runtime_error(message.c_str());
}
void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <typename T>
class GpuArray {
 public:
  explicit GpuArray(size_t count) : count_(count) {
    check(cudaMalloc(&data_, count * sizeof(T)));
    check(cudaMemset(data_, 0, count * sizeof(T)));
  }
  explicit GpuArray(const std::vector<T>& values) : GpuArray(values.size()) {
    check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;
  ~GpuArray() { cudaFree(data_); }

  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t count_;
};

struct Bf16 {
  uint16_t bits;
};
float to_float(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

std::vector<Bf16> random_values(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<Bf16> values(count);
  for (Bf16& value : values) {
    const float x = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    value.bits = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

// One sequence's attention over keys [begin, end), and its log-sum-exp.
struct Result {
  GpuArray<Bf16> out{size_t{kQueries} * kHeads * kDim};
  GpuArray<float> lse{size_t{kQueries} * kHeads};

  Result(const onepass_device* device, const Bf16* q, const Bf16* k, const Bf16* v, int begin, int end, bool causal) {
    const GpuArray<int32_t> queries(std::vector<int32_t>{0, kQueries}), keys(std::vector<int32_t>{end - begin}),
        begins(std::vector<int32_t>{begin, end});
    onepass_attention_params params = onepass_attention_params_default();
    params.q_dtype = params.kv_dtype = params.out_dtype = ONEPASS_BFLOAT16;
    params.batch = 1;
    params.total_q = params.max_seqlen_q = kQueries;
    params.num_heads = kHeads;
    params.num_heads_kv = kHeadsKv;
    params.head_dim = params.head_dim_v = kDim;
    params.q = q;
    params.out = out.get();
    params.softmax_lse = lse.get();
    params.q_head_stride = params.out_head_stride = kDim;
    params.q_row_stride = params.out_row_stride = int64_t{kHeads} * kDim;
    params.k = k;
    params.v = v;
    params.k_head_stride = params.v_head_stride = kDim;
    params.k_row_stride = params.v_row_stride = int64_t{kHeadsKv} * kDim;
    params.total_kv_rows = kPrefix + kSuffix;
    params.cu_seqlens_q = queries.get();
    params.cache_seqlens = keys.get();
    params.cu_seqlens_k = begins.get();
    params.softmax_scale = 1.0f / std::sqrt(float{kDim});
    params.causal = causal ? 1 : 0;

    const onepass_attention_kernel* kernel = nullptr;
    int64_t bytes = 0;
    char* const text = message.data();
    check(onepass_attention_choose(device, &params, "auto", &kernel, text, message.size()));
    check(onepass_attention_scratch_bytes(device, kernel, &params, &bytes, text, message.size()));
    const GpuArray<char> scratch(static_cast<size_t>(bytes));
    check(onepass_attention_plan(device, kernel, &params, scratch.get(), bytes, nullptr, text, message.size()));
    check(onepass_attention_run(device, kernel, &params, scratch.get(), bytes, nullptr, text, message.size()));
    check(cudaDeviceSynchronize());
  }
};

onepass_part_stack part_of(const Result& result) {
  onepass_part_stack part = {};
  part.out = result.out.get();
  part.row_stride = int64_t{kHeads} * kDim;
  part.head_stride = kDim;
  part.lse = result.lse.get();
  part.lse_head_stride = kQueries;
  part.count = 1;
  part.dtype = ONEPASS_BFLOAT16;
  return part;
}

int run() {
  onepass_device* device = nullptr;
  check(onepass_device_open(0, &device, message.data(), message.size()));
  std::mt19937 random(1);
  const GpuArray<Bf16> q(random_values(size_t{kQueries} * kHeads * kDim, random));
  const GpuArray<Bf16> k(random_values(size_t{kPrefix + kSuffix} * kHeadsKv * kDim, random));
  const GpuArray<Bf16> v(random_values(size_t{kPrefix + kSuffix} * kHeadsKv * kDim, random));

  const Result whole(device, q.get(), k.get(), v.get(), 0, kPrefix + kSuffix, true);
  const Result prefix(device, q.get(), k.get(), v.get(), 0, kPrefix, false);  // every query sees all of it
  const Result suffix(device, q.get(), k.get(), v.get(), kPrefix, kPrefix + kSuffix, true);
  const onepass_part_stack parts[] = {part_of(prefix), part_of(suffix)};
  const GpuArray<Bf16> merged(size_t{kQueries} * kHeads * kDim);
  onepass_merge_params merge = onepass_merge_params_default();
  merge.stacks = parts;
  merge.num_stacks = 2;
  merge.out = merged.get();
  merge.out_dtype = ONEPASS_BFLOAT16;
  merge.out_row_stride = int64_t{kHeads} * kDim;
  merge.out_head_stride = kDim;
  merge.rows = kQueries;
  merge.num_heads = kHeads;
  merge.head_dim_v = kDim;
  check(onepass_attention_merge(device, &merge, nullptr, message.data(), message.size()));

  const std::vector<Bf16> expected = whole.out.download(), found = merged.download();
  float largest = 0.0f;
  for (size_t i = 0; i < found.size(); ++i) {
    const float difference = std::fabs(to_float(found[i]) - to_float(expected[i]));
    if (std::isnan(difference) || difference > largest) largest = difference;  // std::fmax() would pass over NaN
  }
  std::printf("largest difference %.5f\n", largest);
  onepass_device_close(device);
  if (!(largest <= 0.02f)) throw std::runtime_error("the merged parts differ from the whole");
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "prefix_and_suffix: %s\n", error.what());
    return 1;
  }
}
