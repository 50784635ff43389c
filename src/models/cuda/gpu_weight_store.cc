#include <cstring>
#include <optional>
#include <span>

#include "kernels/cuda/fill_random.h"
#include "models/weight_store.h"
#include "tensor/cuda/cuda_copy.h"
#include "tensor/cuda/staged_upload.h"

namespace onepass {
namespace {

class GpuWeightStore final : public WeightStore {
 public:
  GpuWeightStore(WeightSource& source, StagedUpload upload, const Stream& stream)
      : source_(source), upload_(std::move(upload)), stream_(stream) {}

  StatusOr<WeightMatrix> matrix(const std::vector<WeightPart>& parts, int64_t cols) override {
    int64_t rows = 0;
    for (const WeightPart& part : parts) rows += part.rows;
    std::byte* data = nullptr;  // allocated when the dtype is known
    int64_t offset = 0;         // in elements
    for (const WeightPart& part : parts) {
      const std::vector<int64_t> shape = {part.rows, cols};
      const int64_t elements = part.rows * cols;
      const std::optional<RandomTensor> random = source_.random_tensor(part.name, shape);
      TensorView view;
      if (!random) {
        ONEPASS_ASSIGN_OR_RETURN(view, source_.tensor(part.name, shape));
      }
      if (!has_dtype_) {
        const DType found = random ? random->dtype : view.dtype;
        dtype_ = found == DType::kF16 ? DType::kF16 : DType::kBF16;
        has_dtype_ = true;
      }
      const int64_t element = static_cast<int64_t>(size_of(dtype_));
      if (data == nullptr) {
        ONEPASS_ASSIGN_OR_RETURN(data, allocate(rows * cols * element));
      }
      std::byte* const to = data + offset * element;
      if (random) {
        ONEPASS_RETURN_IF_ERROR(run_fill_random_cuda({.data = to,
                                                      .dtype = dtype_,
                                                      .elements = elements,
                                                      .offset = random->offset,
                                                      .scale = random->scale,
                                                      .seed = random->seed},
                                                     stream_.cuda));
      } else {
        ONEPASS_RETURN_IF_ERROR(copy(view, to));
      }
      offset += elements;
    }
    return WeightMatrix({{data, dtype_, rows}}, cols);
  }

  StatusOr<FloatVector> vector(const std::vector<WeightPart>& parts) override {
    ONEPASS_ASSIGN_OR_RETURN(const std::vector<float> values, read_floats(source_, parts));
    ONEPASS_ASSIGN_OR_RETURN(std::byte* const data, allocate(std::ssize(values) * sizeof(float)));
    ONEPASS_RETURN_IF_ERROR(buffers_.back().upload(std::as_bytes(std::span(values))));
    return FloatVector{reinterpret_cast<const float*>(data), std::ssize(values)};
  }

  StatusOr<std::vector<DeviceBuffer>> release() override {
    ONEPASS_RETURN_IF_ERROR(upload_.finish());
    // Kernels read weights before they wait for those before them: all must be there.
    ONEPASS_RETURN_IF_ERROR(synchronize(stream_.cuda));
    return std::move(buffers_);
  }

 private:
  StatusOr<std::byte*> allocate(int64_t bytes) {
    ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                             DeviceBuffer::allocate_uninitialized(static_cast<size_t>(bytes), stream_.device));
    buffers_.push_back(std::move(buffer));
    return buffers_.back().as<std::byte>();
  }

  // From the mapped file through page-locked memory, in the matrices' dtype.
  Status copy(const TensorView& view, std::byte* to) {
    const size_t element = size_of(dtype_);
    const auto produce = [&](std::byte* staging, size_t offset, size_t bytes) {
      const int64_t first = static_cast<int64_t>(offset / element), count = static_cast<int64_t>(bytes / element);
      stream_.pool->parallel_for(count, 1 << 18, [&](int64_t begin, int64_t end, int) {
        const std::byte* const from = view.data + static_cast<size_t>(first + begin) * size_of(view.dtype);
        std::byte* const into = staging + static_cast<size_t>(begin) * element;
        if (view.dtype == dtype_) {
          std::memcpy(into, from, static_cast<size_t>(end - begin) * element);
        } else {
          for (int64_t i = 0; i < end - begin; ++i) store_float(into, dtype_, i, load_float(from, view.dtype, i));
        }
      });
    };
    return upload_.copy(to, static_cast<size_t>(view.num_elements()) * element, produce);
  }

  WeightSource& source_;
  StagedUpload upload_;
  const Stream stream_;
  bool has_dtype_ = false;      // there has been a matrix
  DType dtype_ = DType::kBF16;  // of all matrices
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace

StatusOr<std::unique_ptr<WeightStore>> make_gpu_weight_store(WeightSource& source, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(StagedUpload upload, StagedUpload::create());
  return std::make_unique<GpuWeightStore>(source, std::move(upload), stream);
}

}  // namespace onepass
