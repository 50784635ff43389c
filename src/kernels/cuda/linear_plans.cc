#include "kernels/cuda/linear_plans.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/json.h"

namespace onepass {
namespace {

constexpr int kVersion = 3;
constexpr int64_t kLargest = int64_t{1} << 40;

nlohmann::json header(const LinearMachine& machine) {
  return {{"version", kVersion},
          {"gpu", machine.gpu},
          {"driver", machine.driver_version},
          {"cublaslt", machine.cublaslt_version}};
}

// A number from a file of unknown origin.
std::optional<int64_t> number(const nlohmann::json& value, int64_t at_most = kLargest) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto n = value.get<uint64_t>();
  return n <= static_cast<uint64_t>(at_most) ? std::optional(static_cast<int64_t>(n)) : std::nullopt;
}

bool is_array(const nlohmann::json& value, size_t size) { return value.is_array() && value.size() == size; }

nlohmann::json to_json(const LinearShape& s) {
  return {to_string(s.dtype), to_string(s.y_dtype), s.rows,       s.cols,     s.num_rows, s.x_row_stride,
          s.y_row_stride,     s.has_bias,           s.accumulate, s.has_norm, s.gated};
}

std::optional<LinearShape> to_shape(const nlohmann::json& json) {
  if (!is_array(json, 11) || !json[0].is_string() || !json[1].is_string()) return std::nullopt;
  const auto dtype = parse_float_dtype(json[0].get<std::string>());
  const auto y_dtype = parse_float_dtype(json[1].get<std::string>());
  if (!dtype.ok() || !y_dtype.ok()) return std::nullopt;
  LinearShape s{.dtype = *dtype, .y_dtype = *y_dtype};
  bool* const flags[] = {&s.has_bias, &s.accumulate, &s.has_norm, &s.gated};
  for (int i = 0; i < 4; ++i) {
    if (!json[i + 7].is_boolean()) return std::nullopt;
    *flags[i] = json[i + 7].get<bool>();
  }
  int64_t* const sizes[] = {&s.rows, &s.cols, &s.num_rows, &s.x_row_stride, &s.y_row_stride};
  for (int i = 0; i < 5; ++i) {
    const auto n = number(json[i + 2]);
    if (!n.has_value()) return std::nullopt;
    *sizes[i] = *n;
  }
  return s;
}

std::optional<LinearPlan> to_plan(const nlohmann::json& entry) {
  LinearPlan plan;
  if (const auto it = entry.find("stream"); it != entry.end()) {
    if (!is_array(*it, 5) || !(*it)[4].is_boolean()) return std::nullopt;
    plan.stream.norm_inside = (*it)[4].get<bool>();
    int* const parts[] = {&plan.stream.tile_rows, &plan.stream.x_tiles, &plan.stream.cluster,
                          &plan.stream.blocks_per_sm};
    for (int i = 0; i < 4; ++i) {
      const auto n = number((*it)[i], 64);
      if (!n.has_value()) return std::nullopt;
      *parts[i] = static_cast<int>(*n);
    }
    plan.kernel = LinearPlan::Kernel::kStream;
    return is_valid(plan.stream) ? std::optional(plan) : std::nullopt;
  }
  if (const auto it = entry.find("hopper"); it != entry.end()) {
    if (!is_array(*it, 2)) return std::nullopt;
    const auto tile_rows = number((*it)[0], 1024), cluster = number((*it)[1], 64);
    if (!tile_rows.has_value() || !cluster.has_value()) return std::nullopt;
    plan.kernel = LinearPlan::Kernel::kHopper;
    plan.hopper = {.tile_rows = static_cast<int>(*tile_rows), .cluster = static_cast<int>(*cluster)};
    return is_valid(plan.hopper) ? std::optional(plan) : std::nullopt;
  }
  const auto it = entry.find("algorithm");
  if (it == entry.end() || !is_array(*it, plan.algorithm.size())) return std::nullopt;
  for (size_t i = 0; i < plan.algorithm.size(); ++i) {
    if (!(*it)[i].is_number_unsigned()) return std::nullopt;
    plan.algorithm[i] = (*it)[i].get<uint64_t>();
  }
  return plan;
}

}  // namespace

LinearShape shape_of(const CudaLinearParams& p) {
  return {.dtype = p.dtype,
          .y_dtype = p.y_dtype,
          .rows = p.rows,
          .cols = p.cols,
          .num_rows = p.num_rows,
          .x_row_stride = p.x_row_stride,
          .y_row_stride = p.y_row_stride,
          .has_bias = p.bias != nullptr,
          .accumulate = p.accumulate,
          .has_norm = p.norm != nullptr,
          .gated = p.gated};
}

int64_t planned_num_rows(int64_t num_rows) {
  int64_t planned = 1;
  while (planned < num_rows) {
    if (planned >= 16 && planned / 2 * 3 >= num_rows) return planned / 2 * 3;
    planned *= 2;
  }
  return planned;
}

LinearPlans read_linear_plans(const std::string& path, const LinearMachine& machine) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  if (!in) return {};
  const auto file = parse_json(path, text.str());
  if (!file.ok() || !file->is_object() || !file->contains("machine") || (*file)["machine"] != header(machine) ||
      !file->contains("plans") || !(*file)["plans"].is_array()) {
    return {};
  }
  LinearPlans plans;
  for (const nlohmann::json& entry : (*file)["plans"]) {
    if (!entry.is_object() || !entry.contains("shape")) return {};
    const auto shape = to_shape(entry["shape"]);
    const auto plan = to_plan(entry);
    if (!shape.has_value() || !plan.has_value()) return {};
    const bool norm_inside = plan->kernel == LinearPlan::Kernel::kStream && plan->stream.norm_inside;
    if (norm_inside && !(shape->has_norm && stream_linear_can_norm(shape->cols, plan->stream))) return {};
    if (plan->kernel == LinearPlan::Kernel::kHopper && shape->num_rows > kHopperLinearRows) return {};
    plans.emplace(*shape, *plan);
  }
  return plans;
}

Status write_linear_plans(const std::string& path, const LinearMachine& machine, const LinearPlans& plans) {
  nlohmann::json entries = nlohmann::json::array();
  for (const auto& [shape, plan] : plans) {
    nlohmann::json entry = {{"shape", to_json(shape)}};
    switch (plan.kernel) {
      case LinearPlan::Kernel::kCublasLt:
        entry["algorithm"] = plan.algorithm;
        break;
      case LinearPlan::Kernel::kStream: {
        const StreamLinearPlan& s = plan.stream;
        entry["stream"] = {s.tile_rows, s.x_tiles, s.cluster, s.blocks_per_sm, s.norm_inside};
        break;
      }
      case LinearPlan::Kernel::kHopper:
        entry["hopper"] = {plan.hopper.tile_rows, plan.hopper.cluster};
        break;
    }
    entries.push_back(std::move(entry));
  }
  const nlohmann::json file = {{"machine", header(machine)}, {"plans", entries}};
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  // Another process may write the same file: each its own, and the last name counts.
  const std::string temporary = str_cat(path, ".", getpid());
  std::ofstream out(temporary, std::ios::binary);
  out << file.dump(1) << "\n";
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(temporary, path, error);
  if (out && !error) return ok_status();
  std::filesystem::remove(temporary, ignored);
  return absl::UnavailableError(str_cat(path, ": the plans of linear layers cannot be written"));
}

}  // namespace onepass
