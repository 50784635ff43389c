// Typed reading of the JSON files of a model folder, with errors that name file, key, expectation and what was found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace onepass {

// An object of a JSON file. A key that is null counts as missing, but for contains().
class JsonReader {
 public:
  // Reads a file that holds one object.
  static StatusOr<JsonReader> open(const std::string& path);

  bool has(const char* key) const;
  bool contains(const char* key) const { return object_.contains(key); }  // null included
  const nlohmann::json& value(const char* key) const;                     // null when missing

  // Whole numbers in [low, high]. The first refuses a missing key, the others do with `fallback`.
  StatusOr<int64_t> required_int(const char* key, int64_t low, int64_t high) const;
  StatusOr<int64_t> optional_int(const char* key, int64_t low, int64_t high, int64_t fallback) const;
  // Finite numbers in [low, high].
  StatusOr<double> required_number(const char* key, double low, double high) const;
  StatusOr<double> optional_number(const char* key, double low, double high, double fallback) const;
  StatusOr<bool> optional_bool(const char* key, bool fallback) const;
  StatusOr<std::string> optional_string(const char* key, const std::string& fallback) const;
  // A token id or a list of them, as eos_token_id is.
  StatusOr<std::vector<int32_t>> optional_ids(const char* key) const;
  // A nested object; nothing when it is missing.
  StatusOr<std::optional<JsonReader>> optional_object(const char* key) const;

  Status error(const char* key, const std::string& expected) const;
  const std::string& where() const { return where_; }

 private:
  JsonReader(std::string where, nlohmann::json object) : where_(std::move(where)), object_(std::move(object)) {}

  std::string where_;  // "folder/config.json", "folder/config.json: rope_scaling"
  nlohmann::json object_;
};

}  // namespace onepass
