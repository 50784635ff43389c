#include "models/weight_source.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/source_dir.h"
#include "base/thread_pool.h"
#include "models/decoder_weights.h"

namespace onepass {
namespace {

using nlohmann::json;

class WeightSourceTest : public testing::Test {
 protected:
  WeightSourceTest() : dir_(testing::TempDir() + "onepass_weight_source_test_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(dir_);
  }
  ~WeightSourceTest() override { std::filesystem::remove_all(dir_); }

  // Each tensor is [2, 3].
  void write(const std::string& file, const std::vector<std::string>& tensors, const char* dtype = "F32",
             size_t element = 4) const {
    json header = json::object();
    size_t end = 0;
    for (const std::string& tensor : tensors) {
      header[tensor] = {{"dtype", dtype}, {"shape", {2, 3}}, {"data_offsets", {end, end + 6 * element}}};
      end += 6 * element;
    }
    const std::string text = header.dump();
    const uint64_t size = text.size();
    std::ofstream out(dir_ + "/" + file, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << text << std::string(end, '\0');
  }
  void write_index(const json& map) const {
    std::ofstream(dir_ + "/model.safetensors.index.json") << json{{"weight_map", map}}.dump();
  }
  void expect_refused(const std::string& expected) const {
    const Status status = open_weight_files(dir_).status();
    ASSERT_FALSE(status.ok()) << "expected: " << expected;
    EXPECT_NE(status.message().find(expected), std::string::npos) << status << "\nexpected: " << expected;
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << status;
  }

  const std::string dir_;
};

TEST_F(WeightSourceTest, FindsTensorsInShards) {
  write("1.safetensors", {"a", "b"});
  write("2.safetensors", {"c"});
  write_index({{"a", "1.safetensors"}, {"b", "1.safetensors"}, {"c", "2.safetensors"}});
  const auto source = open_weight_files(dir_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->tensor("a", {2, 3}).ok());
  EXPECT_TRUE((*source)->tensor("c", {2, 3}).ok());
  EXPECT_EQ((*source)->untaken(), std::vector<std::string>{"b"});
  EXPECT_EQ((*source)->tensor("c", {3, 2}).status().message(),
            dir_ + "/2.safetensors: tensor c: expected shape [3, 2], found [2, 3]");
  EXPECT_EQ((*source)->tensor("d", {1}).status().message(),
            dir_ + ": expected a tensor d of shape [1], found none in 2 files");
}

TEST_F(WeightSourceTest, RefusesIndexesThatLie) {
  expect_refused("model.safetensors: No such file");
  write("1.safetensors", {"a", "b"});
  write_index(json::array());
  expect_refused("weight_map: expected an object");
  write_index(json::object());
  expect_refused("weight_map: expected at least one tensor");
  write_index({{"a", 1}});
  expect_refused("weight_map: a: expected a file name, found 1");
  for (const char* name : {"../1.safetensors", "/etc/passwd", "", ".", "..", "x\ny", "1.safetensors\t"}) {
    write_index({{"a", name}});
    expect_refused("weight_map: a: expected a file of the folder");
  }
  write_index({{"a", std::string("1.safetensors\0x", 15)}});
  expect_refused("weight_map: a: expected a file of the folder");
  write_index({{"a", "3.safetensors"}});
  expect_refused("3.safetensors: No such file");
  write_index({{"c\n", "1.safetensors"}});
  expect_refused("weight_map: c\\n: expected a shard that holds this tensor, found \"1.safetensors\"");
  write("2.safetensors", {"b"});
  write_index({{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  expect_refused("2.safetensors: tensor b: expected in one shard, found in " + dir_ + "/1.safetensors too");
}

TEST_F(WeightSourceTest, RefusesIntegersAsWeights) {
  write("model.safetensors", {"a"}, "I32");
  const auto source = open_weight_files(dir_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->tensor("a", {2, 3}).status().message(),
            dir_ + "/model.safetensors: tensor a: expected float32, float16 or bfloat16, found int32");
}

TEST_F(WeightSourceTest, RandomWeightsFitTheMachine) {
  ThreadPool pool(1);
  const auto source = make_random_weights(DType::kF32, Stream{.pool = &pool});
  EXPECT_TRUE(source->tensor("a", {16, 16}).ok());
  const Status status = source->tensor("huge", {int64_t{1} << 24, int64_t{1} << 24}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
}

TEST(WeightsFitTest, IsToldInNumbers) {
  const int64_t mib = 1 << 20;
  const Device gpu{.kind = DeviceKind::kCuda, .index = 1};
  EXPECT_TRUE(check_weights_fit(5 * mib, 6 * mib, 10 * mib, 0.9, gpu).ok());
  EXPECT_TRUE(check_weights_fit(6 * mib, 6 * mib, 10 * mib, 1.0, gpu).ok());
  EXPECT_EQ(check_weights_fit(6 * mib, 6 * mib, 10 * mib, 0.9, gpu).message(),
            "weights: expected at most 5 MiB, what --mem-fraction 0.9 of the 10 MiB of cuda:1 leaves beside 4 in use, "
            "found 6 MiB");
  EXPECT_EQ(check_weights_fit(7 * mib, 6 * mib, 10 * mib, 1.0, gpu).message(),
            "weights: expected at most 6 MiB, what is free of the 10 MiB of cuda:1, found 7 MiB");
  EXPECT_EQ(check_weights_fit(1, mib, 10 * mib, 0.5, gpu).message().substr(0, 32), "weights: expected at most 0 MiB,");
}

TEST_F(WeightSourceTest, TellsHowFarLoadingIs) {
  const std::string golden = (source_dir() / "tests/golden/models/llama-biases").string();
  const auto config = load_model_config(golden);
  ASSERT_TRUE(config.ok()) << config.status();
  auto source = open_weight_files(golden);
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<int> done;
  const WeightLoading loading{.on_progress = [&](int parts, int total) {
    EXPECT_EQ(total, config->num_layers + 2);
    done.push_back(parts);
  }};
  EXPECT_TRUE(load_decoder_weights(*config, *std::move(source), Stream(), loading).ok());
  std::vector<int> expected(config->num_layers + 2);
  std::iota(expected.begin(), expected.end(), 1);
  EXPECT_EQ(done, expected);
}

// A golden model with one tensor more than its config accounts for.
TEST_F(WeightSourceTest, DecoderRefusesTensorsThatItWouldIgnore) {
  const std::string golden = (source_dir() / "tests/golden/models/llama-biases").string();
  auto config = load_model_config(golden);
  ASSERT_TRUE(config.ok()) << config.status();
  auto source = open_weight_files(golden);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE(load_decoder_weights(*config, *std::move(source), Stream()).ok());
  config->mlp_bias = false;
  source = open_weight_files(golden);
  const Status status = load_decoder_weights(*config, *std::move(source), Stream()).status();
  EXPECT_NE(status.message().find("tensor model.layers.0.mlp.down_proj.bias: expected only what LlamaForCausalLM"),
            std::string::npos)
      << status;
}

}  // namespace
}  // namespace onepass
