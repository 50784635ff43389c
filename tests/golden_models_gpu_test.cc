// The golden models on a GPU, against transformers and against the CPU.
#include <unistd.h>

#include <random>

#include "golden_model.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

// The file with its float32 matrices in float16.
void halve_matrices(const std::filesystem::path& from, const std::filesystem::path& to) {
  auto file = SafetensorsFile::open(from.string());
  ASSERT_TRUE(file.ok()) << file.status();
  nlohmann::json header;
  std::string data;
  for (const auto& [name, view] : file->tensors()) {
    const size_t begin = data.size();
    const bool is_halved = view.dtype == DType::kF32 && view.shape.size() == 2;
    if (is_halved) {
      data.resize(begin + view.num_elements() * size_of(DType::kF16));
      auto* const halves = reinterpret_cast<std::byte*>(data.data() + begin);
      for (int64_t i = 0; i < view.num_elements(); ++i) {
        store_float(halves, DType::kF16, i, load_float(view.data, view.dtype, i));
      }
    } else {
      ASSERT_EQ(view.dtype, DType::kF32) << name;
      data.append(reinterpret_cast<const char*>(view.data), view.size_bytes());
    }
    header[name] = {
        {"dtype", is_halved ? "F16" : "F32"}, {"shape", view.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  std::ofstream(to, std::ios::binary).write(reinterpret_cast<const char*>(&size), sizeof(size)) << text << data;
}

class GoldenModelOnGpu : public GoldenModel {
 protected:
  void SetUp() override {
    const StatusOr<GpuInfo> gpu = query_gpu(0);
    if (!gpu.ok()) GTEST_SKIP() << gpu.status();
    if (!gpu->usable) GTEST_SKIP() << "no code for " << gpu->name;
    GoldenModel::SetUp();
    original_dir_ = dir_;
    if (has_float32_weights()) use_half_precision();
  }
  void TearDown() override {
    if (dir_ != original_dir_) std::filesystem::remove_all(dir_);
  }

  // A GPU takes float32 weights as bfloat16, whose rounding hides small errors: these models are compared in float16,
  // eight times as precise, and as they are in one test.
  void use_half_precision() {
    const std::filesystem::path copy = testing::TempDir() + "onepass_golden_gpu_" + std::to_string(::getpid());
    std::filesystem::remove_all(copy);
    std::filesystem::create_directories(copy);
    for (const auto& entry : std::filesystem::directory_iterator(original_dir_)) {
      const std::filesystem::path name = entry.path().filename();
      if (name == "golden.safetensors") continue;
      if (name.extension() == ".safetensors") {
        halve_matrices(entry.path(), copy / name);
      } else {
        std::filesystem::copy_file(entry.path(), copy / name);
      }
    }
    dir_ = copy.string();
  }

  ModelRunnerOptions gpu_options() const {
    ModelRunnerOptions on_gpu = options();
    on_gpu.device = {.kind = DeviceKind::kCuda};
    on_gpu.kv_tokens = 4096;
    on_gpu.max_tokens_per_step = on_gpu.max_outputs_per_step = 512;
    on_gpu.plan_file = testing::TempDir() + "onepass_golden_gpu_plans";  // the models share most shapes
    return on_gpu;
  }

  // What logits may differ by from those computed in float32. transformers' own run in low precision says what rounding
  // does to this model; where there is none (float32 weights), 2% of the largest logit in float16.
  float noise() const {
    return native_.empty() ? 0.02f * largest(expected_) : 1.5f * largest_difference(native_, expected_);
  }

  std::string original_dir_;
};

INSTANTIATE_TEST_SUITE_P(Models, GoldenModelOnGpu, testing::ValuesIn(golden_models()), golden_test_name);

TEST_P(GoldenModelOnGpu, GivesTheLogitsOfTransformers) {
  auto engine = make(gpu_options());
  const std::vector<float> actual = logits(*engine, {1 << 20});
  ASSERT_EQ(actual.size(), expected_.size());
  EXPECT_LE(largest_difference(actual, expected_), noise());
  RecordProperty("relative_error", std::to_string(largest_difference(actual, expected_) / largest(expected_)));
  for (size_t i = 0; i < input_ids_.size(); ++i) {
    const std::span<const float> row = std::span(expected_).subspan(i * vocab_size_, vocab_size_);
    if (margin(row) <= 2 * noise()) continue;
    EXPECT_EQ(argmax(std::span(actual).subspan(i * vocab_size_, vocab_size_)), argmax(row)) << "at position " << i;
  }
}

// The CPU's engine moves by up to 5.7% (llama-rope-yarn) when matrices, K, V and what is multiplied are bfloat16.
TEST_P(GoldenModelOnGpu, TakesFloat32WeightsAsBfloat16) {
  if (!has_float32_weights()) GTEST_SKIP() << "other weights";
  ModelRunnerOptions rounded = gpu_options();
  rounded.model_dir = original_dir_;
  auto engine = make(rounded);
  EXPECT_EQ(engine->runner().decoder().weights_dtype(), DType::kBF16);
  const float difference = largest_difference(logits(*engine, {1 << 20}), expected_);
  EXPECT_LE(difference, 0.1f * largest(expected_));
  RecordProperty("relative_error", std::to_string(difference / largest(expected_)));
}

TEST_P(GoldenModelOnGpu, ContinuesGreedilyLikeTransformers) {
  auto engine = make(gpu_options());
  Sequence sequence = *engine->open();
  sequence.tokens = input_ids_;
  const std::vector<float> margins = golden_["greedy_margins"];
  size_t compared = 0;
  for (size_t i = 0; i < greedy_ids_.size(); ++i) {
    const auto row = engine->prefill(sequence);
    ASSERT_TRUE(row.ok()) << row.status();
    if (margins[i] > 2 * noise()) {
      ++compared;
      ASSERT_EQ(argmax(*row), greedy_ids_[i]) << "token " << i << " of the continuation";
    }
    sequence.tokens.push_back(greedy_ids_[i]);  // stays on the reference's text where the choice is within the noise
  }
  EXPECT_GE(10 * compared, greedy_ids_.size()) << "the golden model says little";
}

TEST_P(GoldenModelOnGpu, AgreesWithItselfHoweverItIsComputed) {
  const std::vector<float> expected = logits(*make(gpu_options()), {1 << 20});
  std::mt19937 random(1);
  const auto draw = [&](int n) { return 1 + static_cast<int>(random() % n); };
  for (int page_size : {1, 16, 64, 256}) {
    ModelRunnerOptions paged = gpu_options();
    paged.page_size = page_size;
    auto engine = make(paged);
    EXPECT_LE(largest_difference(logits(*engine, {1}), expected), noise()) << "token by token, pages of " << page_size;
    EXPECT_LE(largest_difference(logits(*engine, {draw(30), draw(30), 1}), expected), noise())
        << "in chunks, pages of " << page_size;
    EXPECT_TRUE(engine->check().empty());
  }
  ModelRunnerOptions reference = gpu_options();
  reference.attention = AttentionKind::kReference;
  EXPECT_LE(largest_difference(logits(*make(reference), {1 << 20}), expected), noise()) << "reference attention";
}

// Decode steps of 1 to 5 sequences, replayed with requests that pad 3 to 4 and 5 to 8, agree with eager steps, however
// often longer prompts come between.
TEST_P(GoldenModelOnGpu, ReplayedStepsAgreeWithEagerOnes) {
  constexpr int kSequences = 5;
  const auto run = [&](bool cuda_graphs) {
    ModelRunnerOptions on_gpu = gpu_options();
    on_gpu.cuda_graphs = cuda_graphs;
    on_gpu.max_requests = 8;
    auto engine = make(on_gpu);
    std::vector<float> all;
    std::vector<Sequence> sequences;
    for (int i = 0; i < kSequences; ++i) {
      sequences.push_back(*engine->open());
      // Each longer than the one before, and the scratch memory of its attention larger.
      const int64_t length = std::max<int64_t>(1, (i + 1) * std::ssize(input_ids_) / kSequences);
      sequences[i].tokens.assign(input_ids_.begin(), input_ids_.begin() + length);
      EXPECT_TRUE(engine->prefill(sequences[i]).ok());
      for (int step = 0; step < 3; ++step) {
        std::vector<Engine::Work> work;
        for (Sequence& sequence : sequences) {
          sequence.tokens.push_back(greedy_ids_[step]);
          work.push_back({.sequence = &sequence, .num_tokens = 1});
        }
        const auto rows = engine->step(work);
        EXPECT_TRUE(rows.ok()) << rows.status();
        if (!rows.ok()) return all;
        all.insert(all.end(), rows->begin(), rows->end());
      }
    }
    for (Sequence& sequence : sequences) engine->close(sequence);
    return all;
  };
  const std::vector<float> eager = run(false), replayed = run(true);
  ASSERT_EQ(eager.size(), replayed.size());
  // Both are padded alike.
  EXPECT_TRUE(eager == replayed) << "differ by up to " << largest_difference(eager, replayed);
}

// The same bits in chunks, with any page size, and beside another sequence.
TEST_P(GoldenModelOnGpu, IsTheSameBitForBitWhenDeterministic) {
  std::mt19937 random(2);
  const auto draw = [&](int n) { return 1 + static_cast<int>(random() % n); };
  ModelRunnerOptions exact = gpu_options();
  exact.deterministic = true;
  exact.max_requests = 2;
  const std::vector<float> expected = logits(*make(exact), {1 << 20});
  EXPECT_LE(largest_difference(expected, expected_), noise());
  for (int page_size : {16, 256}) {
    exact.page_size = page_size;
    auto engine = make(exact);
    EXPECT_TRUE(logits(*engine, {draw(30), draw(30), 1}) == expected) << "pages of " << page_size;
    Sequence first = *engine->open(), second = *engine->open();
    first.tokens = second.tokens = input_ids_;
    const int count = static_cast<int>(input_ids_.size());
    second.tokens.resize(draw(count));
    const Engine::Work work[] = {{&second, second.num_pending(), 1}, {&first, count, count}};
    const auto both = engine->step(work);
    ASSERT_TRUE(both.ok()) << both.status();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), both->begin() + vocab_size_)) << "in a batch";
  }
}

// What one model is enough for.
class OneModelOnGpu : public GoldenModelOnGpu {};
INSTANTIATE_TEST_SUITE_P(Models, OneModelOnGpu, testing::Values("llama-bf16"), golden_test_name);

// Kernels that convert are the plain one alone: it is never taken unasked.
TEST_P(OneModelOnGpu, AnotherDtypeOfTheCacheIsRefused) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    ModelRunnerOptions mixed = gpu_options();
    mixed.kv_dtype = dtype;
    EXPECT_EQ(
        Engine::create(mixed).status().message(),
        str_cat("KV cache: dtype: expected bfloat16, in which this model runs on a GPU (or --attention reference), "
                "found ",
                to_string(dtype)));
    mixed.attention = AttentionKind::kReference;
    EXPECT_LE(largest_difference(logits(*make(mixed), {1 << 20}), expected_), noise());
  }
  ModelRunnerOptions same = gpu_options();
  same.kv_dtype = DType::kBF16;
  EXPECT_LE(largest_difference(logits(*make(same), {1 << 20}), expected_), noise());
}

// A model of 64 times the largest GPU's memory is refused at once, by numbers.
TEST_P(OneModelOnGpu, AModelThatDoesNotFitIsRefusedBeforeItIsLoaded) {
  const std::string folder = testing::TempDir() + "onepass_huge_model";
  std::filesystem::create_directories(folder);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(dir_ + "/config.json"));
  config["num_hidden_layers"] = 1000;
  config["hidden_size"] = config["intermediate_size"] = 1 << 16;
  std::ofstream(folder + "/config.json") << config.dump();
  ModelRunnerOptions huge = gpu_options();
  huge.model_dir = folder;
  huge.dummy_weights = true;
  int loaded = 0;
  huge.on_load_progress = [&](int, int) { ++loaded; };
  const Status status = Engine::create(huge).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(status.message().substr(0, 26), "weights: expected at most ") << status;
  EXPECT_NE(status.message().find(" MiB of cuda:0"), std::string::npos) << status;
  EXPECT_EQ(loaded, 0);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace onepass
