#include "models/json_reader.h"

#include <cmath>

#include "base/mapped_file.h"

namespace onepass {

using nlohmann::json;

StatusOr<JsonReader> JsonReader::open(const std::string& path) {
  ONEPASS_ASSIGN_OR_RETURN(const std::string text, read_text_file(path));
  ONEPASS_ASSIGN_OR_RETURN(json object, parse_json(path, text));
  if (!object.is_object()) return invalid_argument(path, ": expected a JSON object, found ", object.type_name());
  return JsonReader(path, std::move(object));
}

const json& JsonReader::value(const char* key) const {
  static const json null;
  const auto it = object_.find(key);
  return it != object_.end() ? *it : null;
}

bool JsonReader::has(const char* key) const { return !value(key).is_null(); }

Status JsonReader::error(const char* key, const std::string& expected) const {
  return invalid_argument(where_, ": ", key, ": expected ", expected, ", found ",
                          has(key) ? json_excerpt(value(key)) : "nothing");
}

StatusOr<int64_t> JsonReader::required_int(const char* key, int64_t low, int64_t high) const {
  const json& v = value(key);
  const auto expected = [&] { return error(key, str_cat("a whole number from ", low, " to ", high)); };
  if (!v.is_number_integer()) return expected();
  if (v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return expected();
  const int64_t number = v.get<int64_t>();
  if (number < low || number > high) return expected();
  return number;
}

StatusOr<int64_t> JsonReader::optional_int(const char* key, int64_t low, int64_t high, int64_t fallback) const {
  if (!has(key)) return fallback;
  return required_int(key, low, high);
}

StatusOr<double> JsonReader::required_number(const char* key, double low, double high) const {
  const json& v = value(key);
  const double number = v.is_number() ? v.get<double>() : NAN;
  if (!(number >= low && number <= high)) return error(key, str_cat("a number from ", low, " to ", high));
  return number;
}

StatusOr<double> JsonReader::optional_number(const char* key, double low, double high, double fallback) const {
  if (!has(key)) return fallback;
  return required_number(key, low, high);
}

StatusOr<bool> JsonReader::optional_bool(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_boolean()) return error(key, "true or false");
  return value(key).get<bool>();
}

StatusOr<std::string> JsonReader::optional_string(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_string()) return error(key, "a string");
  return value(key).get<std::string>();
}

StatusOr<std::vector<int32_t>> JsonReader::optional_ids(const char* key) const {
  std::vector<int32_t> ids;
  if (!has(key)) return ids;
  const json list = value(key).is_array() ? value(key) : json::array({value(key)});
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<double>() < 0 || id.get<double>() > INT32_MAX) {
      return error(key, "a token id or a list of them");
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

StatusOr<std::optional<JsonReader>> JsonReader::optional_object(const char* key) const {
  if (!has(key)) return std::optional<JsonReader>();
  if (!value(key).is_object()) return error(key, "an object");
  return std::optional<JsonReader>(JsonReader(str_cat(where_, ": ", key), value(key)));
}

}  // namespace onepass
