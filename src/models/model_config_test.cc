#include "models/model_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "models/architecture.h"
#include "models/decoder.h"
#include "models/generation_config.h"

namespace onepass {
namespace {

using nlohmann::json;

class ModelConfigTest : public testing::Test {
 protected:
  ModelConfigTest() : dir_(testing::TempDir() + "onepass_model_config_test_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(dir_);
  }
  ~ModelConfigTest() override { std::filesystem::remove_all(dir_); }

  void write(const std::string& file, const std::string& text) const { std::ofstream(dir_ + "/" + file) << text; }

  StatusOr<ModelConfig> load(const json& config) const {
    write("config.json", config.dump());
    return load_model_config(dir_);
  }
  ModelConfig loaded(const json& config) const {
    const auto result = load(config);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(ModelConfig());
  }

  static void expect_message(const Status& status, const std::string& begin, const std::string& expected) {
    const std::string message(status.message());
    EXPECT_EQ(message.rfind(begin, 0), 0u) << message << "\nexpected: " << begin;
    EXPECT_NE(message.find(expected), std::string::npos) << message << "\nexpected: " << expected;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  // The config with `key` set to `value` is refused with an error that names file and key.
  void expect_refused(json config, const std::string& key, const json& value, const std::string& expected) const {
    config[key] = value;
    expect_message(load(config).status(), dir_ + "/config.json: " + key + ": ", expected);
  }

  const std::string dir_;
  const json llama_ = {{"architectures", {"LlamaForCausalLM"}},
                       {"vocab_size", 128},
                       {"hidden_size", 64},
                       {"intermediate_size", 96},
                       {"num_hidden_layers", 3},
                       {"num_attention_heads", 4},
                       {"num_key_value_heads", 2},
                       {"max_position_embeddings", 1024},
                       {"rms_norm_eps", 1e-5},
                       {"torch_dtype", "float16"},
                       {"rope_theta", 10000.0}};
};

TEST_F(ModelConfigTest, ReadsLlama) {
  json source = llama_;
  ModelConfig config = loaded(source);
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.dtype, DType::kF16);
  EXPECT_EQ(config.sliding_windows, (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(config.rope_inv_freq.size(), 8u);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm || config.tie_word_embeddings);

  source["head_dim"] = 32;
  source["num_key_value_heads"] = nullptr;
  source["attention_bias"] = true;
  source["mlp_bias"] = true;
  source["dtype"] = "bfloat16";  // the spelling of transformers 5 counts
  source["tie_word_embeddings"] = true;
  source["eos_token_id"] = 7;
  config = loaded(source);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.dtype, DType::kBF16);
  EXPECT_TRUE(config.qkv_bias && config.o_bias && config.mlp_bias && config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{7});
  write("generation_config.json", R"({"eos_token_id": [5, 6]})");
  EXPECT_EQ(loaded(source).eos_token_ids, (std::vector<int32_t>{5, 6}));
}

TEST_F(ModelConfigTest, ReadsBiasesAndNormsOfQwen) {
  json source = llama_;
  source["architectures"] = {"Qwen2ForCausalLM"};
  ModelConfig config = loaded(source);
  EXPECT_TRUE(config.qkv_bias && !config.o_bias && !config.qk_norm);
  source["architectures"] = {"Qwen3ForCausalLM"};
  config = loaded(source);
  EXPECT_TRUE(config.qk_norm && !config.qkv_bias && !config.o_bias);
}

// What would compute something else, were it left unread.
TEST_F(ModelConfigTest, RefusesLlamasOfAnotherKind) {
  json source = llama_;
  source["pretraining_tp"] = 1;
  source["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{0, 0, 0}));
  expect_refused(source, "layer_types", {"full_attention", "sliding_attention", "full_attention"},
                 "expected full_attention for each layer, found [\"full_attention\",\"sliding_attention\"");
  expect_refused(source, "layer_types", {"full_attention"}, "a list of 3 types");
  expect_refused(source, "layer_types", "full_attention", "a list of 3 types");
  expect_refused(source, "pretraining_tp", 4, "expected 1, found 4");
  expect_refused(source, "pretraining_tp", 0, "a whole number from 1");
}

TEST_F(ModelConfigTest, ReadsSlidingWindows) {
  json source = llama_;
  source["architectures"] = {"MistralForCausalLM"};
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{4096, 4096, 4096}));  // transformers' default
  source["sliding_window"] = nullptr;
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{0, 0, 0}));
  source["sliding_window"] = 32;
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{32, 32, 32}));
  expect_refused(source, "layer_types", {"full_attention", "full_attention", "full_attention"},
                 "sliding_attention for each layer");

  source["architectures"] = {"Qwen2ForCausalLM"};
  source["max_window_layers"] = 1;
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{0, 0, 0}));  // not asked for
  expect_refused(source, "layer_types", {"full_attention", "full_attention", "sliding_attention"},
                 "full_attention for each layer");
  source["use_sliding_window"] = true;
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{0, 32, 32}));
  source["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{32, 0, 32}));
  source["sliding_window"] = nullptr;
  EXPECT_EQ(loaded(source).sliding_windows, (std::vector<int>{0, 0, 0}));
  source["sliding_window"] = 32;
  expect_refused(source, "layer_types", {"full_attention"}, "a list of 3 types");
  expect_refused(source, "layer_types", {"a", "b", "c"}, "full_attention or sliding_attention");
}

// The numbers are those of transformers 5.23, in float32.
TEST_F(ModelConfigTest, ScalesRotaryFrequenciesLikeTransformers) {
  json source = llama_;
  source["head_dim"] = 128;
  source.erase("rope_theta");
  const auto expect = [&](int context, const json& rope, double factor, std::vector<double> frequencies) {
    source["max_position_embeddings"] = context;
    for (const bool old_spelling : {false, true}) {
      json variant = source, parameters = rope;
      if (old_spelling) {
        variant["rope_theta"] = parameters["rope_theta"];
        parameters["type"] = parameters["rope_type"];
        parameters.erase("rope_theta");
        parameters.erase("rope_type");
      }
      variant[old_spelling ? "rope_scaling" : "rope_parameters"] = parameters;
      const ModelConfig config = loaded(variant);
      ASSERT_EQ(config.rope_inv_freq.size(), 64u);
      EXPECT_NEAR(config.rope_attention_factor, factor, 1e-6);
      const int indices[] = {0, 20, 30, 36, 40, 63};
      for (size_t i = 0; i < frequencies.size(); ++i) {
        EXPECT_NEAR(config.rope_inv_freq[indices[i]] / frequencies[i], 1.0, 2e-6) << rope << " at " << indices[i];
      }
    }
  };
  expect(131072,
         {{"rope_type", "llama3"},
          {"rope_theta", 500000.0},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 8192}},
         1.0, {1, 0.0165604409, 0.00137189368, 7.78465546e-05, 3.42810235e-05, 3.06892588e-07});
  expect(
      131072,
      {{"rope_type", "yarn"}, {"rope_theta", 1000000.0}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}},
      1.138629436, {1, 0.0133352149, 0.00106436096, 0.000179841154, 4.44569851e-05, 3.10234441e-07});
  expect(163840,
         {{"rope_type", "yarn"},
          {"rope_theta", 10000.0},
          {"factor", 40.0},
          {"original_max_position_embeddings", 4096},
          {"mscale", 0.707},
          {"mscale_all_dim", 1.0},
          {"truncate", false}},
         0.921042355, {1, 0.0562341288, 0.00844623521, 0.00219573081, 0.000722638157, 2.88695469e-06});
  expect(16384, {{"rope_type", "linear"}, {"rope_theta", 10000.0}, {"factor", 4.0}}, 1.0,
         {0.25, 0.0140585322, 0.00333380373, 0.00140585331, 0.000790569466, 2.88695483e-05});
  expect(4096, {{"rope_type", "dynamic"}, {"rope_theta", 10000.0}, {"factor", 2.0}}, 1.0,
         {1, 0.0562341288, 0.0133352149, 0.00562341325, 0.00316227786, 0.000115478193});
}

TEST_F(ModelConfigTest, RefusesMissingAbsurdAndMistypedValues) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "max_position_embeddings"}) {
    for (const json& value : {json("abc"), json(-1), json(0), json(1.5), json(1e300), json(INT64_MAX), json(UINT64_MAX),
                              json(true), json(json::array()), json(json::object())}) {
      expect_refused(llama_, key, value, "expected a whole number from 1 to");
    }
    expect_refused(llama_, key, nullptr, "found nothing");
    json config = llama_;
    config.erase(key);
    expect_message(load(config).status(), dir_ + "/config.json: " + key, "found nothing");
  }
  expect_refused(llama_, "rms_norm_eps", "small", "a number from 0 to 1");
  expect_refused(llama_, "rms_norm_eps", nullptr, "found nothing");
  expect_refused(llama_, "rms_norm_eps", -1e-5, "a number from 0 to 1");
  expect_refused(llama_, "num_key_value_heads", 3, "a divisor of num_attention_heads = 4");
  expect_refused(llama_, "num_key_value_heads", 8, "a divisor of num_attention_heads = 4");
  expect_refused(llama_, "hidden_size", 65, "a multiple of num_attention_heads = 4");
  expect_refused(llama_, "head_dim", 7, "an even number");
  expect_refused(llama_, "head_dim", 0, "a whole number");
  expect_refused(llama_, "hidden_act", "gelu", "silu");
  expect_refused(llama_, "tie_word_embeddings", "yes", "true or false");
  expect_refused(llama_, "rope_theta", 0.0, "a number from");
  expect_refused(llama_, "partial_rotary_factor", 0.5, "expected 1");
  expect_refused(llama_, "eos_token_id", "end", "a token id or a list of them");
  expect_refused(llama_, "eos_token_id", -1, "a token id or a list of them");
  json config = llama_;
  config["eos_token_id"] = 128;
  expect_message(load(config).status(), dir_, "eos_token_id: expected less than vocab_size = 128, found 128");
  config = llama_;
  config["torch_dtype"] = "int4";
  expect_message(load(config).status(), dir_ + "/config.json: dtype", "found \"int4\"");
}

TEST_F(ModelConfigTest, RefusesWhatItCannotRun) {
  expect_refused(llama_, "architectures", {"MysteryForCausalLM"}, "found [\"MysteryForCausalLM\"]");
  for (const Architecture& known : kArchitectures) {
    expect_refused(llama_, "architectures", {"MysteryForCausalLM"}, std::string(known.name));
  }
  expect_refused(llama_, "architectures", nullptr, "found nothing");
  expect_refused(llama_, "architectures", json::array(), "a list with one name");
  expect_refused(llama_, "quantization_config", {{"quant_method", "gptq"}}, "quantised");
  expect_refused(llama_, "rope_scaling", "big", "an object");
  expect_refused(llama_, "rope_scaling", {{"rope_type", "long\nrope"}}, "found \"long\\nrope\"");
  expect_refused(llama_, "rope_scaling", {{"rope_type", "linear"}}, "factor: expected a number from");
  expect_refused(llama_, "rope_scaling", {{"rope_type", "linear"}, {"factor", "two"}}, "factor: expected a number");
  expect_refused(llama_, "rope_scaling",
                 {{"rope_type", "llama3"},
                  {"factor", 8.0},
                  {"low_freq_factor", 4.0},
                  {"high_freq_factor", 4.0},
                  {"original_max_position_embeddings", 64}},
                 "high_freq_factor: expected more than low_freq_factor");
}

TEST_F(ModelConfigTest, SizesTheWorkspaceWithoutAllocatingIt) {
  ModelConfig config = loaded(llama_);
  const DecoderWorkspace::Limits limits{.max_tokens = 100, .max_outputs = 7};
  const auto workspace = DecoderWorkspace::create(config, limits, DType::kF32, Device());
  ASSERT_TRUE(workspace.ok()) << workspace.status();
  size_t bytes = 0;
  for (const DeviceBuffer* buffer :
       {&workspace->hidden, &workspace->normed, &workspace->qkv, &workspace->attention, &workspace->gate_up,
        &workspace->inner, &workspace->last_hidden, &workspace->last_attention}) {
    EXPECT_GT(buffer->size(), 0u);
    bytes += buffer->size();
  }
  EXPECT_EQ(DecoderWorkspace::size_bytes(config, limits, DType::kF32), static_cast<int64_t>(bytes));
  config.intermediate_size = 1 << 24;  // more than an address space holds
  EXPECT_GT(DecoderWorkspace::size_bytes(config, {.max_tokens = 1 << 20, .max_outputs = 1}, DType::kF32),
            int64_t{1} << 47);
}

TEST_F(ModelConfigTest, RefusesWhatIsNoJson) {
  expect_message(load_model_config(dir_).status(), dir_ + "/config.json: ", "No such file");
  for (const char* text : {"", "{", "{\"hidden_size\": NaN}", "{\"hidden_size\": Infinity}", "{\"hidden_size\": 1e999}",
                           "nul", "{} {}", "{\"a\": \"\x80\"}"}) {
    write("config.json", text);
    expect_message(load_model_config(dir_).status(), dir_ + "/config.json: ", "expected JSON, found");
  }
  write("config.json", "[1]");
  expect_message(load_model_config(dir_).status(), dir_ + "/config.json: ", "expected a JSON object, found array");
}

TEST_F(ModelConfigTest, ReadsGenerationConfig) {
  const auto none = GenerationConfig::load(dir_);
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->temperature || none->top_k || none->do_sample);
  write("generation_config.json",
        R"({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.1,
            "eos_token_id": [1, 2], "bos_token_id": 3})");
  const auto config = GenerationConfig::load(dir_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->do_sample, true);
  EXPECT_EQ(config->temperature, 0.6f);
  EXPECT_EQ(config->top_p, 0.9f);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->repetition_penalty, 1.1f);
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{1, 2}));
  for (const auto& [key, value] :
       {std::pair("temperature", "-1"), std::pair("top_p", "1.5"), std::pair("top_k", "-3"), std::pair("top_k", "2.5"),
        std::pair("min_p", "\"a\""), std::pair("repetition_penalty", "0"), std::pair("do_sample", "1"),
        std::pair("eos_token_id", "[1, \"x\"]"), std::pair("eos_token_id", "1e18")}) {
    write("generation_config.json", str_cat("{\"", key, "\": ", value, "}"));
    expect_message(GenerationConfig::load(dir_).status(), dir_ + "/generation_config.json: ", key);
  }
}

}  // namespace
}  // namespace onepass
