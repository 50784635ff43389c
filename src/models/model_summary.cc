#include "models/model_summary.h"

#include <algorithm>
#include <filesystem>

#include "models/decoder_weights.h"
#include "models/json_reader.h"
#include "models/weight_source.h"

namespace onepass {
namespace {

namespace fs = std::filesystem;

const char* group_of(std::string_view tensor) {
  const auto has = [&](std::string_view part) { return tensor.find(part) != std::string_view::npos; };
  if (has("embed_tokens")) return "embedding";
  if (has("norm.weight")) return "norms";
  if (has(".self_attn.")) return "attention";
  if (has(".mlp.")) return "mlp";
  if (has("lm_head")) return "lm_head";
  return "other";
}

StatusOr<bool> has_chat_template(const std::string& model_dir) {
  if (fs::exists(model_dir + "/chat_template.jinja")) return true;
  const std::string path = model_dir + "/tokenizer_config.json";
  if (!fs::exists(path)) return false;
  ONEPASS_ASSIGN_OR_RETURN(const JsonReader json, JsonReader::open(path));
  return json.has("chat_template");
}

}  // namespace

StatusOr<ModelSummary> summarize_model(const std::string& model_dir) {
  ModelSummary summary;
  ONEPASS_ASSIGN_OR_RETURN(summary.config, load_model_config(model_dir));
  ONEPASS_ASSIGN_OR_RETURN(auto source, open_weight_files(model_dir));
  ONEPASS_RETURN_IF_ERROR(load_decoder_weights(summary.config, std::move(source), Stream()).status());

  for (const char* name : {"embedding", "attention", "mlp", "norms", "lm_head", "other"}) {
    summary.groups.push_back({.name = name});
  }
  ONEPASS_ASSIGN_OR_RETURN(const std::vector<SafetensorsFile> files, open_safetensors(model_dir));
  for (const SafetensorsFile& file : files) {
    summary.files.push_back({.name = fs::path(file.path()).filename().string(),
                             .bytes = static_cast<int64_t>(file.file_size()),
                             .num_tensors = static_cast<int>(file.tensors().size())});
    for (const auto& [name, view] : file.tensors()) {
      const auto group = std::find_if(summary.groups.begin(), summary.groups.end(),
                                      [&](const auto& candidate) { return candidate.name == group_of(name); });
      group->parameters += view.num_elements();
      group->bytes += static_cast<int64_t>(view.size_bytes());
      summary.dtypes[std::string(to_string(view.dtype))] += view.num_elements();
      summary.parameters += view.num_elements();
      summary.weight_bytes += static_cast<int64_t>(view.size_bytes());
    }
  }
  std::erase_if(summary.groups, [](const auto& group) { return group.parameters == 0; });
  summary.has_tokenizer = fs::exists(model_dir + "/tokenizer.json");
  ONEPASS_ASSIGN_OR_RETURN(summary.has_chat_template, has_chat_template(model_dir));
  summary.has_generation_config = fs::exists(model_dir + "/generation_config.json");
  return summary;
}

}  // namespace onepass
