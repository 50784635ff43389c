// Damaged model folders: each is loaded or refused with one line of error, never a crash (nor a sanitizer's report).
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "base/source_dir.h"
#include "engine/engine.h"
#include "models/generation_config.h"
#include "models/safetensors.h"
#include "models/weight_source.h"
#include "mutator.h"

namespace onepass {
namespace {

namespace fs = std::filesystem;

constexpr int kMutations = 2000;  // of each kind of file

class FuzzModels : public testing::Test {
 protected:
  FuzzModels() : dir_(testing::TempDir() + "onepass_fuzz_models_" + std::to_string(::getpid())) {}
  ~FuzzModels() override { fs::remove_all(dir_); }

  // Copies a golden model and keeps its files' bytes.
  void use(const std::string& model) {
    fs::remove_all(dir_);
    fs::copy(source_dir() / "tests/golden/models" / model, dir_);
    files_.clear();
    for (const auto& entry : fs::directory_iterator(dir_)) {
      const std::string name = entry.path().filename().string();
      std::ostringstream text;
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
      if (!name.starts_with("golden")) files_[name] = text.str();
    }
  }

  void write(const std::string& file, const std::string& bytes) const {
    fs::remove(dir_ + "/" + file);  // ext4 waits for the disk when a file is truncated and written anew
    std::ofstream(dir_ + "/" + file, std::ios::binary | std::ios::trunc) << bytes;
  }
  void restore(const std::string& file) const { write(file, files_.at(file)); }

  // Either it worked, or the error is one line that names something in the folder.
  void check(const Status& status) {
    ++(status.ok() ? accepted_ : refused_);
    if (status.ok()) return;
    const std::string message(status.message());
    ASSERT_NE(message, "");
    ASSERT_LT(message.size(), 1000u) << message;
    for (const char c : message) ASSERT_TRUE(static_cast<unsigned char>(c) >= ' ' && c != 0x7f) << message;
  }

  // Loads the folder and, if that works, computes some tokens.
  void load_and_run() {
    const auto engine = Engine::create(
        {.model_dir = dir_, .page_size = 16, .num_threads = 1, .context_length = 16, .max_tokens_per_step = 16});
    check(engine.status());
    if (!engine.ok()) return;
    Sequence sequence = *(*engine)->open();
    for (int i = 0; i < 5; ++i) sequence.tokens.push_back(i % (*engine)->config().vocab_size);
    const auto logits = (*engine)->prefill(sequence);
    ASSERT_TRUE(logits.ok()) << logits.status();
    ASSERT_EQ(logits->size(), static_cast<size_t>((*engine)->config().vocab_size));
    (*engine)->close(sequence);
  }

  std::string dir_;
  std::map<std::string, std::string> files_;
  int accepted_ = 0, refused_ = 0;
};

std::string with_length(uint64_t header_size, const std::string& rest) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &header_size, 8);
  return bytes + rest;
}

// A safetensors file in its three parts, damaged in one of them.
std::string damage_safetensors(const std::string& file, Mutator& mutator) {
  uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), 8);
  const std::string header = file.substr(8, header_size), data = file.substr(8 + header_size);
  switch (mutator.below(6)) {
    case 0:  // the length lies
      return with_length(
          mutator.below(2) == 0 ? uint64_t{1} << mutator.below(64) : header_size + mutator.below(64) - 32,
          header + data);
    case 1:  // the end is missing, or there is more
      return mutator.below(4) == 0 ? file + std::string(mutator.below(100), 'x')
                                   : file.substr(0, mutator.below(file.size()));
    case 2: {  // bytes of the header
      const std::string damaged = mutator.bytes(header);
      return with_length(damaged.size(), damaged + data);
    }
    case 3:  // bytes anywhere
      return mutator.bytes(file);
    default: {  // shapes, offsets, dtypes and names
      const std::string damaged = mutator.structure(header);
      return with_length(damaged.size(), damaged + data);
    }
  }
}

std::string damage_json(const std::string& text, Mutator& mutator) {
  if (mutator.below(3) == 0) return mutator.bytes(text);
  return mutator.structure(text);
}

TEST_F(FuzzModels, SafetensorsAreReadOrRefused) {
  use("llama-gqa");
  Mutator mutator(1);
  for (int i = 0; i < 2 * kMutations; ++i) {
    SCOPED_TRACE(i);
    write("model.safetensors", damage_safetensors(files_["model.safetensors"], mutator));
    const auto file = SafetensorsFile::open(dir_ + "/model.safetensors");
    check(file.status());
    if (!file.ok()) continue;
    for (const auto& [name, view] : file->tensors()) {  // every byte that a view names is there to read
      if (view.size_bytes() == 0) continue;
      ASSERT_LE(view.size_bytes(), file->file_size());
      volatile std::byte first = view.data[0], last = view.data[view.size_bytes() - 1];
      static_cast<void>(first), static_cast<void>(last);
    }
  }
  EXPECT_GT(accepted_, kMutations / 20);  // most damage to weights is still a valid file
  EXPECT_GT(refused_, kMutations);
}

TEST_F(FuzzModels, ModelsWithDamagedWeightsRunOrAreRefused) {
  Mutator mutator(2);
  for (const char* model : {"llama-sharded", "qwen2-bf16", "qwen3", "llama-fp16"}) {
    use(model);
    std::vector<std::string> shards;
    for (const auto& [name, bytes] : files_) {
      if (name.ends_with(".safetensors")) shards.push_back(name);
    }
    for (int i = 0; i < kMutations / 4; ++i) {
      SCOPED_TRACE(std::string(model) + ", mutation " + std::to_string(i));
      const std::string& shard = shards[mutator.below(shards.size())];
      write(shard, damage_safetensors(files_[shard], mutator));
      load_and_run();
      restore(shard);
    }
  }
  EXPECT_GT(accepted_, 0);
  EXPECT_GT(refused_, kMutations / 2);
}

TEST_F(FuzzModels, ModelsWithDamagedConfigsRunOrAreRefused) {
  Mutator mutator(3);
  for (const char* model : {"llama31", "llama31-v5", "mistral-window", "qwen2-window-v5", "qwen2-yarn", "qwen3",
                            "llama-rope-dynamic", "llama-rope-linear"}) {
    use(model);
    for (int i = 0; i < kMutations / 4; ++i) {
      SCOPED_TRACE(std::string(model) + ", mutation " + std::to_string(i));
      write("config.json", damage_json(files_["config.json"], mutator));
      load_and_run();
    }
  }
  EXPECT_GT(accepted_, kMutations / 10);
  EXPECT_GT(refused_, kMutations / 2);
}

// The format allows a header of any length, and the data right behind it.
TEST_F(FuzzModels, WeightsMayLieAtAnyAlignment) {
  for (const char* model : {"llama-gqa", "llama-bf16", "llama-fp16"}) {
    use(model);
    const std::string& file = files_["model.safetensors"];
    uint64_t header_size = 0;
    std::memcpy(&header_size, file.data(), 8);
    std::vector<float> expected;
    for (size_t padding : {0, 1, 2, 3, 6}) {
      write("model.safetensors",
            with_length(header_size + padding,
                        file.substr(8, header_size) + std::string(padding, ' ') + file.substr(8 + header_size)));
      auto engine = Engine::create({.model_dir = dir_, .num_threads = 1});
      ASSERT_TRUE(engine.ok()) << engine.status();
      Sequence sequence = *(*engine)->open();
      sequence.tokens = {1, 2, 3, 4, 5};
      const std::span<float> logits = *(*engine)->prefill(sequence);
      if (padding == 0) expected.assign(logits.begin(), logits.end());
      EXPECT_TRUE(std::equal(logits.begin(), logits.end(), expected.begin(), expected.end())) << padding;
    }
  }
}

TEST_F(FuzzModels, DamagedIndexesAreReadOrRefused) {
  use("llama-sharded");
  Mutator mutator(4);
  for (int i = 0; i < kMutations; ++i) {
    SCOPED_TRACE(i);
    write("model.safetensors.index.json", damage_json(files_["model.safetensors.index.json"], mutator));
    check(open_safetensors(dir_).status());
  }
  EXPECT_GT(accepted_, 0);
  EXPECT_GT(refused_, kMutations / 4);
}

TEST_F(FuzzModels, DamagedGenerationConfigsAreReadOrRefused) {
  use("llama-gqa");
  const std::string text = R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0,
      "repetition_penalty": 1.1, "eos_token_id": [1, 2], "bos_token_id": 3})";
  Mutator mutator(5);
  for (int i = 0; i < kMutations; ++i) {
    SCOPED_TRACE(i);
    write("generation_config.json", damage_json(text, mutator));
    const auto config = GenerationConfig::load(dir_);
    check(config.status());
    if (!config.ok()) continue;
    for (const auto& value : {config->temperature, config->top_p, config->min_p, config->repetition_penalty}) {
      EXPECT_TRUE(!value || (std::isfinite(*value) && *value >= 0.0f));
    }
    for (int32_t token : config->eos_token_ids) EXPECT_GE(token, 0);
  }
  EXPECT_GT(accepted_, kMutations / 20);
  EXPECT_GT(refused_, kMutations / 4);
}

}  // namespace
}  // namespace onepass
