// The values of the template language: Python's, as far as chat templates use them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace onepass::jinja {

// A fault of a template: syntax, an unknown filter, raise_exception(). Thrown and caught within this room: Template
// turns it into a Status at its border.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Value;
using List = std::vector<Value>;
// In the order of insertion, as Python's; keys are strings (JSON's are).
using Dict = std::vector<std::pair<std::string, Value>>;

struct Arguments;
using Function = std::function<Value(const Arguments&)>;

// Lists and dicts are shared by reference, as in Python; the template language has no way to make a cycle but namespace
// attributes, which hold no container that holds them.
class Value {
 public:
  struct Undefined {
    std::string name;  // for errors
  };
  struct None {};
  struct Tuple {
    std::shared_ptr<List> items;
  };
  struct Namespace {
    std::shared_ptr<Dict> attributes;
  };

  // Implicit, so that filters and methods return what they computed.
  // NOLINTBEGIN(google-explicit-constructor)
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool b) : data_(b) {}
  Value(int64_t i) : data_(i) {}
  Value(double d) : data_(d) {}
  Value(std::string s) : data_(std::move(s)) {}
  Value(const char* s) : data_(std::string(s)) {}
  Value(List list);
  Value(Dict dict);
  Value(Tuple tuple);
  // Counts as kNamespaceDepth deep, whatever is put into it later; what goes in is less deep, so none holds itself.
  Value(Namespace space) : data_(std::move(space)), depth_(kNamespaceDepth) {}
  Value(std::shared_ptr<Function> function) : data_(std::move(function)) {}
  // NOLINTEND(google-explicit-constructor)
  // REQUIRES: nested less deeply than kMaxDepth.
  static Value from_json(const nlohmann::ordered_json& json);

  // Levels of lists, dicts and namespaces; an Error when there would be more than kMaxDepth, so that what walks a value
  // (printing, comparing, its destructor) does not run out of stack.
  static constexpr int kMaxDepth = 200;
  static constexpr int kNamespaceDepth = 100;
  int depth() const { return depth_; }

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_int() const { return is<int64_t>(); }
  bool is_float() const { return is<double>(); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_string() const { return is<std::string>(); }
  bool is_list() const { return is<std::shared_ptr<List>>() || is<Tuple>(); }
  bool is_dict() const { return is<std::shared_ptr<Dict>>(); }
  bool is_namespace() const { return is<Namespace>(); }
  bool is_function() const { return is<std::shared_ptr<Function>>(); }

  const std::string& string() const { return std::get<std::string>(data_); }
  int64_t integer() const;  // of an int or a bool; an Error otherwise
  double number() const;    // of a number; an Error otherwise
  List& list() const;       // REQUIRES: is_list()
  Dict& dict() const;       // REQUIRES: is_dict() or is_namespace()
  const Function& function() const { return *std::get<std::shared_ptr<Function>>(data_); }
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

  bool truth() const;
  std::string type_name() const;
  std::string str() const;   // Python's str(): what {{ }} prints
  std::string repr() const;  // Python's repr()
  // json.dumps(value, ensure_ascii=False), with an indent of so many spaces (-1: on one line).
  std::string to_json(int indent = -1, const std::string& item_separator = "", const std::string& key_separator = ": ",
                      bool sort_keys = false) const;

  // The items that `for` visits: of a list, a dict's keys, a string's characters; nothing of Undefined.
  List iterate() const;

  bool operator==(const Value& other) const;
  // -1, 0 or 1; an Error for values that Python does not order.
  static int compare(const Value& a, const Value& b);
  bool contains(const Value& item) const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<List>, std::shared_ptr<Dict>, Tuple,
               Namespace, std::shared_ptr<Function>>
      data_;
  int depth_ = 0;
};

// The entry of a dict; null when there is none.
const Value* find(const Dict& dict, const std::string& key);
void assign(Dict& dict, const std::string& key, Value value);

// A call's arguments, by position and by name.
struct Arguments {
  List positional;
  Dict named;

  // Argument `index`, or the one named `name`, or `fallback`.
  Value get(size_t index, const char* name, const Value& fallback = Value()) const;
};

// Bytes of any text that a template makes.
inline constexpr size_t kMaxText = size_t{16} << 20;

// An Error for what cannot be put into a namespace.
void check_attribute(const Value& value);

// Where `part` begins in `text` at or after `begin`, or npos: in linear time, whatever the texts.
size_t position_of(const std::string& text, const std::string& part, size_t begin);

// The code points of a UTF-8 string, one string each; a broken byte is one by itself.
std::vector<std::string> characters(const std::string& text);

}  // namespace onepass::jinja
