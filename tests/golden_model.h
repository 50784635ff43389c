// The golden models, for tests of each device: tiny random models of every architecture and config feature, made by the
// transformers library (tools/make_golden_models.py), with the logits and greedy continuations that it gave.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/source_dir.h"
#include "engine/engine.h"
#include "models/safetensors.h"

namespace onepass {

inline std::filesystem::path golden_folder() { return source_dir() / "tests/golden/models"; }

inline std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder()))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

inline std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const TensorView& view = file.tensors().at(name);
  std::vector<float> values(view.num_elements());
  convert_to_float(view.data, view.dtype, view.num_elements(), values.data());
  return values;
}

inline float largest(std::span<const float> values) {
  float result = 0.0f;
  for (float value : values) result = std::max(result, std::fabs(value));
  return result;
}

inline float largest_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float result = 0.0f;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    result = std::isnan(difference) ? INFINITY : std::max(result, difference);
  }
  return result;
}

inline int argmax(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The distance between the largest logit and the second largest.
inline float margin(std::span<const float> logits) {
  std::vector<float> sorted(logits.begin(), logits.end());
  std::nth_element(sorted.begin(), sorted.begin() + 1, sorted.end(), std::greater<float>());
  return *std::max_element(sorted.begin(), sorted.begin() + 1) - sorted[1];
}

inline double negative_log_likelihood(std::span<const float> logits, int token) {
  double sum = 0.0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit));
  return std::log(sum) - logits[token];
}

class GoldenModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    dir_ = (golden_folder() / GetParam()).string();
    golden_ = nlohmann::json::parse(std::ifstream(dir_ + "/golden.json"));
    input_ids_ = golden_["input_ids"].get<std::vector<int32_t>>();
    greedy_ids_ = golden_["greedy_ids"].get<std::vector<int32_t>>();
    auto file = SafetensorsFile::open(dir_ + "/golden.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    expected_ = floats(*file, "logits");
    if (file->tensors().contains("logits_native")) native_ = floats(*file, "logits_native");
    vocab_size_ = static_cast<int>(expected_.size() / input_ids_.size());
  }

  // Float32 weights are compared in float32 throughout, K and V in the cache too.
  ModelRunnerOptions options() const {
    ModelRunnerOptions options{
        .model_dir = dir_, .num_threads = 2, .max_tokens_per_step = 4096, .max_outputs_per_step = 4096};
    return options;
  }

  std::unique_ptr<Engine> make(const ModelRunnerOptions& options) const {
    auto engine = Engine::create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  // Logits of every position, computed in pieces of the given sizes (the last one as often as needed).
  std::vector<float> logits(Engine& engine, const std::vector<int>& pieces) const {
    Sequence sequence = *engine.open();
    sequence.tokens = input_ids_;
    std::vector<float> all;
    for (size_t i = 0; sequence.num_pending() > 0; ++i) {
      const int count = std::min(sequence.num_pending(), pieces[std::min(i, pieces.size() - 1)]);
      const Engine::Work work{.sequence = &sequence, .num_tokens = count, .num_outputs = count};
      const auto piece = engine.step({&work, 1});
      EXPECT_TRUE(piece.ok()) << piece.status();
      all.insert(all.end(), piece->begin(), piece->end());
    }
    engine.close(sequence);
    return all;
  }

  bool has_float32_weights() const { return golden_["weights_dtype"] == "float32"; }

  std::string dir_;
  nlohmann::json golden_;
  std::vector<int32_t> input_ids_, greedy_ids_;
  std::vector<float> expected_;  // [input_ids, vocab_size], computed in float32
  std::vector<float> native_;    // the same in the weights' own dtype; empty for float32
  int vocab_size_ = 0;
};

inline std::string golden_test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace onepass
