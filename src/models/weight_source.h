// Where a model's tensors come from: the files of its folder, or random numbers.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/status.h"
#include "models/model_config.h"
#include "models/safetensors.h"
#include "tensor/buffer.h"
#include "tensor/device.h"

namespace onepass {

// Owns the memory of every tensor that it hands out.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // A floating tensor of this name and shape; an error names the file, the tensor, and the expected and the found
  // shape.
  virtual StatusOr<TensorView> tensor(const std::string& name, const std::vector<int64_t>& shape) = 0;

  // Names in the files that nobody has asked for, sorted.
  virtual std::vector<std::string> untaken() const = 0;

  // Bytes of all files, for progress and reports; 0 for random weights.
  virtual int64_t file_bytes() const = 0;
};

// DIR/model.safetensors, or the shards that DIR/model.safetensors.index.json names; mapped, so that nothing is read
// before it is used.
StatusOr<std::unique_ptr<WeightSource>> open_weight_files(const std::string& model_dir);

// Random weights of `dtype`, small enough that activations stay tame; norms are near one. The same every time.
std::unique_ptr<WeightSource> make_random_weights(DType dtype, const Stream& stream);

// The same files, for looking at a folder. An error names a tensor that stands in two of them, that the index names and
// its shard lacks, or a shard outside the folder.
StatusOr<std::vector<SafetensorsFile>> open_safetensors(const std::string& model_dir);

}  // namespace onepass
