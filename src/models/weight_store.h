// Where a model's tensors are kept for the forward pass: on the CPU in the mapped files themselves, on a GPU in its
// memory.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/decoder_weights.h"
#include "models/weight_source.h"

namespace onepass {

// A tensor [rows] or [rows, cols] of the source.
struct WeightPart {
  std::string name;
  int64_t rows = 0;
};

// Used by one thread at a time; owns nothing of what it hands out after release().
class WeightStore {
 public:
  virtual ~WeightStore() = default;

  // The parts one below the other, each [rows, cols].
  virtual StatusOr<WeightMatrix> matrix(const std::vector<WeightPart>& parts, int64_t cols) = 0;
  // The parts one after the other, as float32.
  virtual StatusOr<FloatVector> vector(const std::vector<WeightPart>& parts) = 0;

  // Everything is in its place; hands over the memory that the matrices and vectors point to.
  virtual StatusOr<std::vector<DeviceBuffer>> release() = 0;
};

// The store of the stream's device; the source outlives what the store hands out. `source` and the stream's pool are
// used until release(). On a GPU matrices are of one dtype, that of the first one's file, or bfloat16 where that is
// float32.
StatusOr<std::unique_ptr<WeightStore>> make_weight_store(WeightSource& source, const Stream& stream);

// Each in a file of its own.
std::unique_ptr<WeightStore> make_cpu_weight_store(WeightSource& source);
StatusOr<std::unique_ptr<WeightStore>> make_gpu_weight_store(WeightSource& source, const Stream& stream);

// The parts' numbers as float32, one after the other.
StatusOr<std::vector<float>> read_floats(WeightSource& source, const std::vector<WeightPart>& parts);

}  // namespace onepass
