#include "tokenizer/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/strings.h"

namespace onepass::jinja {
namespace {

constexpr int64_t kMaxVisits =
    10'000'000;  // of one comparison: lists that share their parts have more paths than parts

// Python's repr() of a float: the shortest digits that give it back.
std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const double magnitude = std::fabs(value);
  const auto format = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16) ? std::chars_format::scientific
                                                                                : std::chars_format::fixed;
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, format).ptr;
  std::string text(buffer, end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string string_repr(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (char c : text) {
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\x";
      out += kHex[static_cast<unsigned char>(c) >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string json_string(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

struct JsonStyle {
  int indent;
  std::string item_separator;
  std::string key_separator;
  bool sort_keys;
};

void write_json(const Value& value, const JsonStyle& style, int depth, std::string& out) {
  if (out.size() > kMaxText) throw Error("tojson: a text too long");
  const auto new_line = [&](int level) {
    if (style.indent >= 0) out += "\n" + std::string(static_cast<size_t>(style.indent) * level, ' ');
  };
  if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.integer() != 0 ? "true" : "false";
  } else if (value.is_int() || value.is_float()) {
    const std::string text = value.repr();
    out += text == "nan" ? "NaN" : text == "inf" ? "Infinity" : text == "-inf" ? "-Infinity" : text;
  } else if (value.is_string()) {
    out += json_string(value.string());
  } else if (value.is_list()) {
    out += '[';
    bool first = true;
    for (const Value& item : value.list()) {
      if (!first) out += style.item_separator;
      first = false;
      new_line(depth + 1);
      write_json(item, style, depth + 1, out);
    }
    if (!first) new_line(depth);
    out += ']';
  } else if (value.is_dict()) {
    Dict sorted;
    if (style.sort_keys) {
      sorted = value.dict();
      std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out += '{';
    bool first = true;
    for (const auto& [key, item] : style.sort_keys ? sorted : value.dict()) {
      if (!first) out += style.item_separator;
      first = false;
      new_line(depth + 1);
      out += json_string(key) + style.key_separator;
      write_json(item, style, depth + 1, out);
    }
    if (!first) new_line(depth);
    out += '}';
  } else {
    throw Error(str_cat("tojson: expected JSON data, found ", value.type_name()));
  }
}

void write_repr(const Value& value, int depth, std::string& out) {
  if (out.size() > kMaxText) throw Error("a text too long");
  if (value.is_string()) {
    out += string_repr(value.string());
  } else if (value.is_list()) {
    const bool tuple = value.is<Value::Tuple>();
    out += tuple ? '(' : '[';
    const List& items = value.list();
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += ", ";
      write_repr(items[i], depth + 1, out);
    }
    if (tuple && items.size() == 1) out += ',';
    out += tuple ? ')' : ']';
  } else if (value.is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.dict()) {
      if (!first) out += ", ";
      first = false;
      out += string_repr(key) + ": ";
      write_repr(item, depth + 1, out);
    }
    out += '}';
  } else {
    out += value.str();
  }
}

int checked_depth(int depth) {
  if (depth > Value::kMaxDepth) throw Error("a value nested too deeply");
  return depth;
}

int depth_above(const List& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return checked_depth(depth + 1);
}

int depth_above(const Dict& entries) {
  int depth = 0;
  for (const auto& [key, item] : entries) depth = std::max(depth, item.depth());
  return checked_depth(depth + 1);
}

bool equal(const Value& a, const Value& b, int64_t& visits) {
  if (++visits > kMaxVisits) throw Error("a comparison too long");
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return a.number() == b.number();
    return a.integer() == b.integer();
  }
  if (a.is_string() && b.is_string()) return a.string() == b.string();
  if (a.is_list() && b.is_list()) {
    return a.is<Value::Tuple>() == b.is<Value::Tuple>() && a.list().size() == b.list().size() &&
           std::equal(a.list().begin(), a.list().end(), b.list().begin(),
                      [&](const Value& x, const Value& y) { return equal(x, y, visits); });
  }
  if (a.is_namespace() && b.is_namespace()) return &a.dict() == &b.dict();
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().size() != b.dict().size()) return false;
    for (const auto& [key, item] : a.dict()) {
      const Value* match = find(b.dict(), key);
      if (match == nullptr || !equal(item, *match, visits)) return false;
    }
    return true;
  }
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

}  // namespace

Value::Value(List list) : data_(std::make_shared<List>(std::move(list))) { depth_ = depth_above(this->list()); }
Value::Value(Dict dict) : data_(std::make_shared<Dict>(std::move(dict))) { depth_ = depth_above(this->dict()); }
Value::Value(Tuple tuple) : data_(std::move(tuple)) { depth_ = depth_above(list()); }

Value Value::from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_unsigned:
      return json.get<uint64_t>() <= INT64_MAX ? Value(json.get<int64_t>()) : Value(json.get<double>());
    case nlohmann::json::value_t::number_float:
      return json.get<double>();
    case nlohmann::json::value_t::string:
      return json.get<std::string>();
    case nlohmann::json::value_t::array: {
      List list;
      for (const auto& item : json) list.push_back(from_json(item));
      return list;
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) dict.emplace_back(key, from_json(item));
      return dict;
    }
    default:
      return None{};
  }
}

int64_t Value::integer() const {
  if (is_int()) return std::get<int64_t>(data_);
  if (is_bool()) return std::get<bool>(data_) ? 1 : 0;
  throw Error(str_cat("expected a whole number, found ", type_name()));
}

double Value::number() const {
  if (is_float()) return std::get<double>(data_);
  if (is_int() || is_bool()) return static_cast<double>(integer());
  throw Error(str_cat("expected a number, found ", type_name()));
}

List& Value::list() const {
  return is<Tuple>() ? *std::get<Tuple>(data_).items : *std::get<std::shared_ptr<List>>(data_);
}

Dict& Value::dict() const {
  return is_namespace() ? *std::get<Namespace>(data_).attributes : *std::get<std::shared_ptr<Dict>>(data_);
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_bool() || is_int()) return integer() != 0;
  if (is_float()) return number() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !list().empty();
  if (is_dict()) return !dict().empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return undefined_name().empty() ? "an undefined value" : "undefined \"" + undefined_name() + "\"";
  if (is_none()) return "None";
  if (is_bool()) return "a boolean";
  if (is_int()) return "a whole number";
  if (is_float()) return "a float";
  if (is_string()) return "a string";
  if (is_list()) return "a list";
  if (is_dict()) return "a mapping";
  if (is_namespace()) return "a namespace";
  return "a function";
}

std::string Value::str() const {
  if (is_undefined()) return "";
  if (is_none()) return "None";
  if (is_bool()) return integer() != 0 ? "True" : "False";
  if (is_int()) return std::to_string(integer());
  if (is_float()) return float_repr(number());
  if (is_string()) return string();
  if (is_namespace()) return "<Namespace>";
  if (is_function()) return "<function>";
  return repr();
}

std::string Value::repr() const {
  std::string out;
  write_repr(*this, 0, out);
  return out;
}

std::string Value::to_json(int indent, const std::string& item_separator, const std::string& key_separator,
                           bool sort_keys) const {
  std::string out;
  const std::string separator = !item_separator.empty() ? item_separator : indent >= 0 ? "," : ", ";
  write_json(*this, {indent, separator, key_separator, sort_keys}, 0, out);
  return out;
}

List Value::iterate() const {
  if (is_list()) return list();
  List items;
  if (is_dict()) {
    for (const auto& [key, item] : dict()) items.emplace_back(key);
  } else if (is_string()) {
    for (std::string& character : characters(string())) items.emplace_back(std::move(character));
  } else if (!is_undefined()) {
    throw Error(str_cat("cannot iterate over ", type_name()));
  }
  return items;
}

bool Value::operator==(const Value& other) const {
  int64_t visits = 0;
  return equal(*this, other, visits);
}

int Value::compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  if (a.is_string() && b.is_string()) return a.string() < b.string() ? -1 : a.string() > b.string() ? 1 : 0;
  if (a.is_list() && b.is_list()) {
    for (size_t i = 0; i < std::min(a.list().size(), b.list().size()); ++i) {
      if (!(a.list()[i] == b.list()[i])) return compare(a.list()[i], b.list()[i]);
    }
    return a.list().size() < b.list().size() ? -1 : a.list().size() > b.list().size() ? 1 : 0;
  }
  throw Error(str_cat("cannot order ", a.type_name(), " and ", b.type_name()));
}

bool Value::contains(const Value& item) const {
  if (is_string()) {
    if (!item.is_string())
      throw Error(str_cat("in: expected a string on the left of a string, found ", item.type_name()));
    return position_of(string(), item.string(), 0) != std::string::npos;
  }
  if (is_dict()) return item.is_string() && find(dict(), item.string()) != nullptr;
  if (is_list()) return std::find(list().begin(), list().end(), item) != list().end();
  if (is_undefined()) return false;
  throw Error(str_cat("in: expected a container, found ", type_name()));
}

const Value* find(const Dict& dict, const std::string& key) {
  for (const auto& [name, value] : dict) {
    if (name == key) return &value;
  }
  return nullptr;
}

void assign(Dict& dict, const std::string& key, Value value) {
  for (auto& [name, old] : dict) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  dict.emplace_back(key, std::move(value));
}

Value Arguments::get(size_t index, const char* name, const Value& fallback) const {
  if (index < positional.size()) return positional[index];
  const Value* value = find(named, name);
  return value != nullptr ? *value : fallback;
}

void check_attribute(const Value& value) {
  if (value.depth() < Value::kNamespaceDepth) return;
  throw Error("a namespace's attribute can be neither a namespace nor hold one, nor be nested too deeply");
}

size_t position_of(const std::string& text, const std::string& part, size_t begin) {
  if (begin > text.size()) return std::string::npos;
  const void* const found = ::memmem(text.data() + begin, text.size() - begin, part.data(), part.size());
  return found == nullptr ? std::string::npos : static_cast<const char*>(found) - text.data();
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> result;
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = text[i];
    size_t length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    for (size_t k = 1; k < length; ++k) {
      if (i + k >= text.size() || (static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) length = 1;
    }
    result.push_back(text.substr(i, length));
    i += length;
  }
  return result;
}

}  // namespace onepass::jinja
