#include "models/weight_source.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "base/check.h"
#include "base/memory_info.h"
#include "models/json_reader.h"

namespace onepass {
namespace {

class FileWeights final : public WeightSource {
 public:
  FileWeights(std::string model_dir, std::vector<SafetensorsFile> files)
      : model_dir_(std::move(model_dir)), files_(std::move(files)) {}

  StatusOr<TensorView> tensor(const std::string& name, const std::vector<int64_t>& shape) override {
    for (const SafetensorsFile& file : files_) {
      const auto it = file.tensors().find(name);
      if (it == file.tensors().end()) continue;
      const TensorView& view = it->second;
      if (view.shape != shape) {
        return invalid_argument(file.path(), ": tensor ", name, ": expected shape ", shape_string(shape), ", found ",
                                shape_string(view.shape));
      }
      if (view.dtype != DType::kF32 && view.dtype != DType::kF16 && view.dtype != DType::kBF16) {
        return invalid_argument(file.path(), ": tensor ", name, ": expected float32, float16 or bfloat16, found ",
                                to_string(view.dtype));
      }
      taken_.insert(name);
      return view;
    }
    return not_found(model_dir_, ": expected a tensor ", name, " of shape ", shape_string(shape), ", found none in ",
                     files_.size(), files_.size() == 1 ? " file" : " files");
  }

  std::optional<RandomTensor> random_tensor(const std::string&, const std::vector<int64_t>&) override {
    return std::nullopt;
  }

  std::vector<std::string> untaken() const override {
    std::vector<std::string> names;
    for (const SafetensorsFile& file : files_) {
      for (const auto& [name, view] : file.tensors()) {
        if (!taken_.contains(name)) names.push_back(name);
      }
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const SafetensorsFile& file : files_) bytes += static_cast<int64_t>(file.file_size());
    return bytes;
  }

 private:
  const std::string model_dir_;
  const std::vector<SafetensorsFile> files_;
  std::set<std::string> taken_;
};

// Uniform numbers from a 64-bit mixer (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
float uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24f - 0.5f;
}

class RandomWeights final : public WeightSource {
 public:
  RandomWeights(DType dtype, const Stream& stream) : dtype_(dtype), stream_(stream) {}

  StatusOr<TensorView> tensor(const std::string& name, const std::vector<int64_t>& shape) override {
    TensorView view{.dtype = dtype_, .shape = shape};
    // Memory is mapped without asking whether there is as much: an absurd config would end in the kernel's killing.
    bytes_ += static_cast<int64_t>(view.size_bytes());
    const int64_t machine = machine_memory();
    if (bytes_ > machine) {
      return resource_exhausted("random weights: expected at most the machine's ", machine, " bytes, found ", bytes_,
                                " with tensor ", name);
    }
    ONEPASS_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(view.size_bytes()));
    const RandomTensor random = next(name, shape);
    const int64_t elements = view.num_elements();
    stream_.pool->parallel_for(elements, 65536, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        store_float(buffer.data(), dtype_, i, random.offset + random.scale * uniform(random.seed, i));
      }
    });
    view.data = buffer.data();
    buffers_.push_back(std::move(buffer));
    return view;
  }

  std::optional<RandomTensor> random_tensor(const std::string& name, const std::vector<int64_t>& shape) override {
    return next(name, shape);
  }

  std::vector<std::string> untaken() const override { return {}; }
  int64_t file_bytes() const override { return 0; }

 private:
  // Matrices keep the variance of their input (uniform numbers in [-1/2, 1/2) have variance 1/12); norms scale by 0.5
  // to 1.5.
  RandomTensor next(const std::string& name, const std::vector<int64_t>& shape) {
    return {.dtype = dtype_,
            .offset = name.ends_with("norm.weight") ? 1.0f : 0.0f,
            .scale = shape.size() == 2 ? std::sqrt(12.0f / static_cast<float>(shape[1])) : 1.0f,
            .seed = ++count_ * 0x632be59bd9b4e019u};
  }

  const DType dtype_;
  const Stream stream_;
  uint64_t count_ = 0;
  int64_t bytes_ = 0;
  std::vector<Buffer> buffers_;
};

}  // namespace

StatusOr<std::vector<SafetensorsFile>> open_safetensors(const std::string& model_dir) {
  std::vector<SafetensorsFile> files;
  const std::string single = model_dir + "/model.safetensors", index = model_dir + "/model.safetensors.index.json";
  if (!std::filesystem::exists(index)) {
    ONEPASS_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(single));
    files.push_back(std::move(file));
    return files;
  }
  ONEPASS_ASSIGN_OR_RETURN(const JsonReader json, JsonReader::open(index));
  const nlohmann::json& map = json.value("weight_map");
  if (!map.is_object()) return json.error("weight_map", "an object from tensor to file");
  std::map<std::string, size_t> position;  // of each shard in `files`
  for (const auto& [tensor, shard] : map.items()) {
    const auto error = [&](const auto&... expected) {
      return invalid_argument(index, ": weight_map: ", printable(tensor), ": expected ", expected..., ", found ",
                              json_excerpt(shard));
    };
    if (!shard.is_string()) return error("a file name");
    const std::string name = shard.get<std::string>();
    // A name, not a way out of the folder, nor one that ends early or breaks a line.
    const bool is_plain =
        std::none_of(name.begin(), name.end(), [](char c) { return c == '/' || (c >= 0 && c < ' ') || c == 0x7f; });
    if (!is_plain || name.empty() || name == "." || name == "..") {
      return error("a file of the folder");
    }
    if (!position.contains(name)) {
      ONEPASS_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(str_cat(model_dir, "/", name)));
      position[name] = files.size();
      files.push_back(std::move(file));
    }
    if (!files[position[name]].tensors().contains(tensor)) return error("a shard that holds this tensor");
  }
  std::map<std::string, std::string> owner;
  for (const SafetensorsFile& file : files) {
    for (const auto& [name, view] : file.tensors()) {
      const auto [it, fresh] = owner.emplace(name, file.path());
      if (!fresh) {
        return invalid_argument(file.path(), ": tensor ", printable(name), ": expected in one shard, found in ",
                                it->second, " too");
      }
    }
  }
  if (files.empty()) return json.error("weight_map", "at least one tensor");
  return files;
}

StatusOr<std::unique_ptr<WeightSource>> open_weight_files(const std::string& model_dir) {
  ONEPASS_ASSIGN_OR_RETURN(std::vector<SafetensorsFile> files, open_safetensors(model_dir));
  return std::unique_ptr<WeightSource>(std::make_unique<FileWeights>(model_dir, std::move(files)));
}

std::unique_ptr<WeightSource> make_random_weights(DType dtype, const Stream& stream) {
  return std::make_unique<RandomWeights>(dtype, stream);
}

}  // namespace onepass
