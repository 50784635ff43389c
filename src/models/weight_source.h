// Where a model's tensors come from: the files of its folder, or random numbers.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "models/model_config.h"
#include "models/safetensors.h"
#include "tensor/buffer.h"
#include "tensor/device.h"

namespace onepass {

// A tensor of random numbers: element i is offset + scale * u, u uniform in [-1/2, 1/2) and a function of seed and i.
struct RandomTensor {
  DType dtype = DType::kBF16;
  float offset = 0.0f;
  float scale = 0.0f;
  uint64_t seed = 0;
};

// Owns the memory of every tensor that it hands out.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // A floating tensor of this name and shape; an error names the file, the tensor, and the expected and the found
  // shape.
  virtual StatusOr<TensorView> tensor(const std::string& name, const std::vector<int64_t>& shape) = 0;

  // What tensor() would make, where it makes rather than finds them, for a device that can do so in its own memory;
  // nothing where it finds them. Asked instead of tensor().
  virtual std::optional<RandomTensor> random_tensor(const std::string& name, const std::vector<int64_t>& shape) = 0;

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
