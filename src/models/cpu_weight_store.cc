#include <cstring>

#include "models/weight_store.h"

namespace onepass {
namespace {

class CpuWeightStore final : public WeightStore {
 public:
  explicit CpuWeightStore(WeightSource& source) : source_(source) {}

  // Where the file has them, unless their dtypes differ.
  StatusOr<WeightMatrix> matrix(const std::vector<WeightPart>& parts, int64_t cols) override {
    std::vector<MatrixSlice> slices;
    bool same = true;
    for (const WeightPart& part : parts) {
      ONEPASS_ASSIGN_OR_RETURN(const TensorView view, source_.tensor(part.name, {part.rows, cols}));
      slices.push_back({view.data, view.dtype, part.rows});
      same = same && view.dtype == slices[0].dtype;
    }
    if (!same) {
      for (MatrixSlice& slice : slices) {
        ONEPASS_ASSIGN_OR_RETURN(float* const floats, allocate(slice.rows * cols));
        convert_to_float(slice.data, slice.dtype, slice.rows * cols, floats);
        slice = {floats, DType::kF32, slice.rows};
      }
    }
    return WeightMatrix(std::move(slices), cols);
  }

  StatusOr<FloatVector> vector(const std::vector<WeightPart>& parts) override {
    ONEPASS_ASSIGN_OR_RETURN(const std::vector<float> values, read_floats(source_, parts));
    ONEPASS_ASSIGN_OR_RETURN(float* const floats, allocate(std::ssize(values)));
    std::memcpy(floats, values.data(), values.size() * sizeof(float));
    return FloatVector{floats, std::ssize(values)};
  }

  StatusOr<std::vector<DeviceBuffer>> release() override { return std::move(buffers_); }

 private:
  StatusOr<float*> allocate(int64_t count) {
    ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::allocate(count * sizeof(float), Device()));
    buffers_.push_back(std::move(buffer));
    return buffers_.back().as<float>();
  }

  WeightSource& source_;
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace

std::unique_ptr<WeightStore> make_cpu_weight_store(WeightSource& source) {
  return std::make_unique<CpuWeightStore>(source);
}

StatusOr<std::unique_ptr<WeightStore>> make_weight_store(WeightSource& source, const Stream& stream) {
  if (stream.device.kind == DeviceKind::kCuda) return make_gpu_weight_store(source, stream);
  return make_cpu_weight_store(source);
}

StatusOr<std::vector<float>> read_floats(WeightSource& source, const std::vector<WeightPart>& parts) {
  std::vector<float> values;
  for (const WeightPart& part : parts) {
    ONEPASS_ASSIGN_OR_RETURN(const TensorView view, source.tensor(part.name, {part.rows}));
    const size_t begin = values.size();
    values.resize(begin + part.rows);
    convert_to_float(view.data, view.dtype, part.rows, values.data() + begin);
  }
  return values;
}

}  // namespace onepass
