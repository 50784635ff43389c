// What a model folder holds and what memory it needs, read from its headers alone: `onepass inspect`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/model_config.h"

namespace onepass {

struct ModelSummary {
  struct File {
    std::string name;
    int64_t bytes = 0;
    int num_tensors = 0;
  };
  struct Group {
    std::string name;  // "embedding", "attention", "mlp", "norms", "lm_head", "other"
    int64_t parameters = 0;
    int64_t bytes = 0;
  };

  ModelConfig config;
  std::vector<File> files;
  std::vector<Group> groups;              // those that are not empty, in the order of the forward pass
  std::map<std::string, int64_t> dtypes;  // "bfloat16" -> parameters
  int64_t parameters = 0;                 // of all tensors in the files
  int64_t weight_bytes = 0;
  bool has_tokenizer = false;      // tokenizer.json
  bool has_chat_template = false;  // chat_template.jinja, or in tokenizer_config.json
  bool has_generation_config = false;
};

// Reads the folder's headers and checks that every tensor of the forward pass is there in its shape: a folder that this
// accepts can be loaded. Errors as those of Decoder::load.
StatusOr<ModelSummary> summarize_model(const std::string& model_dir);

}  // namespace onepass
