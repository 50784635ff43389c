// Filters and tests (Jinja2's, as its documentation describes them, and transformers' tojson).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "base/strings.h"
#include "tokenizer/jinja_builtins.h"

namespace onepass::jinja {
namespace {

using Filter = Value (*)(const Value&, const Arguments&);
using Test = bool (*)(const Value&, const Arguments&);

// "a.b.0" of an item, as map(attribute=...) and its kin take it.
Value path(const Value& item, const Value& attribute) {
  if (!attribute.is_string()) return get_item(item, attribute);
  Value value = item;
  size_t begin = 0;
  const std::string& text = attribute.string();
  while (begin <= text.size()) {
    const size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const bool index = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    value = get_item(value, index ? Value(static_cast<int64_t>(std::stoll(part))) : Value(part));
    begin = end + 1;
  }
  return value;
}

Value length(const Value& v, const Arguments&) {
  if (v.is_string()) return static_cast<int64_t>(characters(v.string()).size());
  return static_cast<int64_t>(v.iterate().size());
}

Value join(const Value& v, const Arguments& a) {
  const std::string separator = a.get(0, "d", "").str();
  const Value attribute = a.get(1, "attribute");
  std::string text;
  bool first = true;
  for (const Value& item : v.iterate()) {
    if (!first) text += separator;
    first = false;
    text += attribute.is_undefined() ? item.str() : path(item, attribute).str();
  }
  return text;
}

Value default_value(const Value& v, const Arguments& a) {
  const bool falsy = a.get(1, "boolean", false).truth();
  return v.is_undefined() || (falsy && !v.truth()) ? a.get(0, "default_value", "") : v;
}

Value tojson(const Value& v, const Arguments& a) {
  const Value indent = a.get(1, "indent", Value::None{}), separators = a.get(2, "separators", Value::None{});
  const bool ascii = a.get(0, "ensure_ascii", false).truth();
  if (ascii) throw Error("tojson: ensure_ascii is not supported");
  std::string item, key = ": ";
  if (separators.is_list() && separators.list().size() == 2) {
    item = separators.list()[0].str();
    key = separators.list()[1].str();
  }
  return v.to_json(indent.is_none() ? -1 : static_cast<int>(std::clamp<int64_t>(indent.integer(), 0, 100)), item, key,
                   a.get(3, "sort_keys", false).truth());
}

Value to_int(const Value& v, const Arguments& a) {
  Value fallback = a.get(0, "default", int64_t{0});
  if (v.is_int() || v.is_bool()) return v.integer();
  double number = NAN;
  if (v.is_float()) number = v.number();
  if (v.is_string()) {
    const std::string text = call_method(v, "strip", {}).string();
    char* end = nullptr;
    number = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') return fallback;
  }
  if (!(std::fabs(number) < 9e18)) return fallback;
  return static_cast<int64_t>(number);
}

Value to_float(const Value& v, const Arguments& a) {
  if (v.is_number()) return v.number();
  if (v.is_string()) {
    char* end = nullptr;
    const std::string text = call_method(v, "strip", {}).string();
    const double number = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0') return number;
  }
  return a.get(0, "default", 0.0);
}

Value indent(const Value& v, const Arguments& a) {
  const Value width = a.get(0, "width", int64_t{4});
  const std::string prefix =
      width.is_string() ? width.string() : std::string(std::clamp<int64_t>(width.integer(), 0, 1000), ' ');
  const bool first = a.get(1, "first", false).truth(), blank = a.get(2, "blank", false).truth();
  const std::string text = v.str();
  std::string out = first ? prefix : "";
  for (size_t i = 0; i < text.size(); ++i) {
    out += text[i];
    if (text[i] != '\n') continue;
    const bool empty_line = i + 1 < text.size() && text[i + 1] == '\n';
    if (i + 1 < text.size() && (!empty_line || blank)) out += prefix;
  }
  return out;
}

Value select_by(const Value& v, const Arguments& a, bool by_attribute, bool wanted) {
  List result;
  const size_t skip = by_attribute ? 1 : 0;
  if (a.positional.size() < skip) throw Error("selectattr: expected the name of an attribute");
  const std::string test = a.positional.size() > skip ? a.positional[skip].str() : "";
  Arguments rest;
  for (size_t i = skip + 1; i < a.positional.size(); ++i) rest.positional.push_back(a.positional[i]);
  for (const Value& item : v.iterate()) {
    const Value subject = by_attribute ? path(item, a.positional[0]) : item;
    const bool holds = test.empty() ? subject.truth() : apply_test(test, subject, rest);
    if (holds == wanted) result.push_back(item);
  }
  return result;
}

Value map(const Value& v, const Arguments& a) {
  List result;
  const Value attribute = a.get(SIZE_MAX, "attribute");
  if (!attribute.is_undefined()) {
    Value fallback = a.get(SIZE_MAX, "default");
    for (const Value& item : v.iterate()) {
      Value value = path(item, attribute);
      result.push_back(value.is_undefined() && !fallback.is_undefined() ? fallback : value);
    }
    return result;
  }
  if (a.positional.empty()) throw Error("map: expected a filter or attribute=");
  Arguments rest{{a.positional.begin() + 1, a.positional.end()}, a.named};
  for (const Value& item : v.iterate()) result.push_back(apply_filter(a.positional[0].str(), item, rest));
  return result;
}

// Strings compare without case unless asked, as in Jinja2.
Value sort_key(const Value& v, bool case_sensitive) {
  return v.is_string() && !case_sensitive ? call_method(v, "lower", {}) : v;
}

Value sort(const Value& v, const Arguments& a) {
  List items = v.iterate();
  const bool reverse = a.get(0, "reverse", false).truth(), sensitive = a.get(1, "case_sensitive", false).truth();
  const Value attribute = a.get(2, "attribute");
  const auto key = [&](const Value& item) {
    return sort_key(attribute.is_undefined() || attribute.is_none() ? item : path(item, attribute), sensitive);
  };
  std::stable_sort(items.begin(), items.end(), [&](const Value& x, const Value& y) {
    const int order = Value::compare(key(x), key(y));
    return reverse ? order > 0 : order < 0;
  });
  return items;
}

Value dictsort(const Value& v, const Arguments& a) {
  if (!v.is_dict()) throw Error(str_cat("dictsort: expected a mapping, found ", v.type_name()));
  Dict entries = v.dict();
  const bool sensitive = a.get(0, "case_sensitive", false).truth(), by_value = a.get(1, "by", "key").str() == "value";
  const bool reverse = a.get(2, "reverse", false).truth();
  std::stable_sort(entries.begin(), entries.end(), [&](const auto& x, const auto& y) {
    const Value left = by_value ? x.second : Value(x.first), right = by_value ? y.second : Value(y.first);
    const int order = Value::compare(sort_key(left, sensitive), sort_key(right, sensitive));
    return reverse ? order > 0 : order < 0;
  });
  List result;
  for (const auto& [key, value] : entries) result.emplace_back(Value::Tuple{std::make_shared<List>(List{key, value})});
  return result;
}

Value unique(const Value& v, const Arguments& a) {
  const bool sensitive = a.get(0, "case_sensitive", false).truth();
  List result, seen;
  for (const Value& item : v.iterate()) {
    const Value key = sort_key(item, sensitive);
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    if (seen.size() >= 10'000) throw Error("unique: more than 10000 different items");
    seen.push_back(key);
    result.push_back(item);
  }
  return result;
}

Value reverse(const Value& v, const Arguments&) {
  List items = v.iterate();
  std::reverse(items.begin(), items.end());
  if (!v.is_string()) return items;
  std::string text;
  for (const Value& character : items) text += character.string();
  return text;
}

Value edge(const Value& v, bool last) {
  const List items = v.iterate();
  if (items.empty()) return Value::Undefined{last ? "last" : "first"};
  return last ? items.back() : items.front();
}

// Python's round() of a float: the nearest of so many decimals by the number's exact value, half to even.
double round_decimal(double x, int64_t precision) {
  if (!std::isfinite(x) || x == 0 || precision > 323) return x;
  if (precision < -309) return std::copysign(0.0, x);
  char digits[800];  // of the largest number 309, a point, and 323 more
  if (precision >= 0) {
    std::snprintf(digits, sizeof(digits), "%.*f", static_cast<int>(precision), x);
  } else {
    std::snprintf(digits, sizeof(digits), "%.17e", x);
    const int64_t kept = std::atoi(std::strchr(digits, 'e') + 1) + precision;  // decimals of x as d.ddd
    if (kept < -1) return std::copysign(0.0, x);
    if (kept == -1) {
      const double unit = std::strtod(str_cat("1e", -precision).c_str(), nullptr);
      return std::copysign(std::fabs(x) > unit / 2 ? unit : 0.0, x);
    }
    std::snprintf(digits, sizeof(digits), "%.*e", static_cast<int>(kept), x);
  }
  const double rounded = std::strtod(digits, nullptr);
  if (!std::isfinite(rounded)) throw Error("round: the rounded number is too large");
  return rounded;
}

// Python's round() of a whole number, which leaves its digits after the point alone.
int64_t round_integer(int64_t x, int64_t precision) {
  if (precision >= 0) return x;
  if (precision < -19) return 0;
  __int128 unit = 1;
  for (int64_t i = 0; i > precision; --i) unit *= 10;
  __int128 rest = x % unit;
  if (rest < 0) rest += unit;
  __int128 rounded = x - rest;
  const bool odd = rounded / unit % 2 != 0;
  if (2 * rest > unit || (2 * rest == unit && odd)) rounded += unit;
  if (rounded > INT64_MAX || rounded < INT64_MIN) throw Error("round: the rounded number is too large");
  return static_cast<int64_t>(rounded);
}

Value round_number(const Value& v, const Arguments& a) {
  const int64_t precision = a.get(0, "precision", int64_t{0}).integer();
  const std::string method = a.get(1, "method", "common").str();
  if (method == "common") {
    return v.is_float() ? Value(round_decimal(v.number(), precision)) : Value(round_integer(v.integer(), precision));
  }
  if (method != "ceil" && method != "floor") throw Error("round: expected the method common, ceil or floor");
  const double x = v.number();
  if (!v.is_float() && precision >= 0) return x;
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (scale == 0 || !std::isfinite(x * scale)) throw Error(str_cat("round: no number of precision ", precision));
  return (method == "ceil" ? std::ceil(x * scale) : std::floor(x * scale)) / scale;
}

Value extreme(const Value& v, int sign) {
  const List items = v.iterate();
  if (items.empty()) return Value::Undefined{"min or max of nothing"};
  Value best = items[0];
  for (const Value& item : items) {
    if (Value::compare(sort_key(item, false), sort_key(best, false)) * sign > 0) best = item;
  }
  return best;
}

Value sum(const Value& v, const Arguments& a) {
  const Value attribute = a.get(0, "attribute");
  double total = 0;
  bool whole = true;
  for (const Value& item : v.iterate()) {
    const Value number = attribute.is_undefined() ? item : path(item, attribute);
    whole = whole && !number.is_float();
    total += number.number();
  }
  return whole ? Value(static_cast<int64_t>(total)) : Value(total);
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (char c : text) {
    out += c == '&'    ? "&amp;"
           : c == '<'  ? "&lt;"
           : c == '>'  ? "&gt;"
           : c == '"'  ? "&#34;"
           : c == '\'' ? "&#39;"
                       : std::string(1, c);
  }
  return out;
}

// A filter that is the string method of the same name.
template <const char* kMethod>
Value method(const Value& v, const Arguments& a) {
  return call_method(Value(v.str()), kMethod, a);
}
constexpr char kStrip[] = "strip", kUpper[] = "upper", kLower[] = "lower", kTitle[] = "title",
               kCapitalize[] = "capitalize", kReplace[] = "replace";

const std::map<std::string, Filter>& filters() {
  static const std::map<std::string, Filter> table = {
      {"length", length},
      {"count", length},
      {"join", join},
      {"default", default_value},
      {"d", default_value},
      {"tojson", tojson},
      {"int", to_int},
      {"float", to_float},
      {"indent", indent},
      {"map", map},
      {"sort", sort},
      {"dictsort", dictsort},
      {"unique", unique},
      {"reverse", reverse},
      {"round", round_number},
      {"sum", sum},
      {"trim", method<kStrip>},
      {"upper", method<kUpper>},
      {"lower", method<kLower>},
      {"title", method<kTitle>},
      {"capitalize", method<kCapitalize>},
      {"replace", method<kReplace>},
      {"string", [](const Value& v, const Arguments&) -> Value { return v.str(); }},
      {"safe", [](const Value& v, const Arguments&) -> Value { return v; }},
      {"e", [](const Value& v, const Arguments&) -> Value { return escape_html(v.str()); }},
      {"escape", [](const Value& v, const Arguments&) -> Value { return escape_html(v.str()); }},
      {"list", [](const Value& v, const Arguments&) -> Value { return v.iterate(); }},
      {"first", [](const Value& v, const Arguments&) -> Value { return edge(v, false); }},
      {"last", [](const Value& v, const Arguments&) -> Value { return edge(v, true); }},
      {"min", [](const Value& v, const Arguments&) -> Value { return extreme(v, -1); }},
      {"max", [](const Value& v, const Arguments&) -> Value { return extreme(v, 1); }},
      {"abs",
       [](const Value& v, const Arguments&) -> Value {
         return v.is_float() ? Value(std::fabs(v.number())) : Value(std::abs(v.integer()));
       }},
      {"items",
       [](const Value& v, const Arguments& a) -> Value {
         return v.is_undefined() ? Value(List{}) : call_method(v, "items", a);
       }},
      {"attr", [](const Value& v, const Arguments& a) -> Value { return get_item(v, a.get(0, "name")); }},
      {"format", [](const Value& v, const Arguments& a) -> Value { return format_percent(v.str(), a.positional); }},
      {"select", [](const Value& v, const Arguments& a) -> Value { return select_by(v, a, false, true); }},
      {"reject", [](const Value& v, const Arguments& a) -> Value { return select_by(v, a, false, false); }},
      {"selectattr", [](const Value& v, const Arguments& a) -> Value { return select_by(v, a, true, true); }},
      {"rejectattr", [](const Value& v, const Arguments& a) -> Value { return select_by(v, a, true, false); }},
  };
  return table;
}

// A comparison with the test's argument.
template <typename F>
bool with_argument(const Value& v, const Arguments& a, F&& compare) {
  if (a.positional.empty()) throw Error("the test needs an argument");
  return compare(v, a.positional[0]);
}

bool equal(const Value& v, const Arguments& a) {
  return with_argument(v, a, [](const Value& x, const Value& y) { return x == y; });
}
bool not_equal(const Value& v, const Arguments& a) { return !equal(v, a); }
bool in(const Value& v, const Arguments& a) {
  return with_argument(v, a, [](const Value& x, const Value& y) { return y.contains(x); });
}
template <int kOrder, bool kOrEqual>
bool ordered(const Value& v, const Arguments& a) {
  return with_argument(v, a, [](const Value& x, const Value& y) {
    const int order = Value::compare(x, y);
    return order == kOrder || (kOrEqual && order == 0);
  });
}
bool divisible(const Value& v, const Arguments& a) {
  return with_argument(v, a, [](const Value& x, const Value& y) {
    if (y.integer() == 0) throw Error("division by zero");
    return y.integer() == -1 || x.integer() % y.integer() == 0;
  });
}

const std::map<std::string, Test>& tests() {
  static const std::map<std::string, Test> table = {
      {"defined", [](const Value& v, const Arguments&) { return !v.is_undefined(); }},
      {"undefined", [](const Value& v, const Arguments&) { return v.is_undefined(); }},
      {"none", [](const Value& v, const Arguments&) { return v.is_none(); }},
      {"boolean", [](const Value& v, const Arguments&) { return v.is_bool(); }},
      {"true", [](const Value& v, const Arguments&) { return v.is_bool() && v.truth(); }},
      {"false", [](const Value& v, const Arguments&) { return v.is_bool() && !v.truth(); }},
      {"integer", [](const Value& v, const Arguments&) { return v.is_int(); }},
      {"float", [](const Value& v, const Arguments&) { return v.is_float(); }},
      {"number", [](const Value& v, const Arguments&) { return v.is_number(); }},
      {"string", [](const Value& v, const Arguments&) { return v.is_string(); }},
      {"mapping", [](const Value& v, const Arguments&) { return v.is_dict(); }},
      {"sequence", [](const Value& v,
                      const Arguments&) { return v.is_list() || v.is_string() || v.is_dict() || v.is_undefined(); }},
      {"iterable", [](const Value& v,
                      const Arguments&) { return v.is_list() || v.is_string() || v.is_dict() || v.is_undefined(); }},
      {"callable", [](const Value& v, const Arguments&) { return v.is_function(); }},
      {"odd", [](const Value& v, const Arguments&) { return v.integer() % 2 != 0; }},
      {"even", [](const Value& v, const Arguments&) { return v.integer() % 2 == 0; }},
      {"lower",
       [](const Value& v, const Arguments&) { return v.str() == call_method(Value(v.str()), "lower", {}).string(); }},
      {"upper",
       [](const Value& v, const Arguments&) { return v.str() == call_method(Value(v.str()), "upper", {}).string(); }},
      {"filter", [](const Value& v, const Arguments&) { return filters().contains(v.str()); }},
      {"divisibleby", divisible},
      {"in", in},
      {"equalto", equal},
      {"eq", equal},
      {"sameas", equal},
      {"ne", not_equal},
      {"lt", ordered<-1, false>},
      {"lessthan", ordered<-1, false>},
      {"le", ordered<-1, true>},
      {"gt", ordered<1, false>},
      {"greaterthan", ordered<1, false>},
      {"ge", ordered<1, true>},
  };
  return table;
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto it = filters().find(name);
  if (it == filters().end()) throw Error(str_cat("no filter named \"", name, "\""));
  return it->second(value, arguments);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  static const std::map<std::string, std::string> operators = {{"==", "eq"}, {"!=", "ne"}, {"<", "lt"},
                                                               {"<=", "le"}, {">", "gt"},  {">=", "ge"}};
  const auto alias = operators.find(name);
  const auto it = tests().find(alias != operators.end() ? alias->second : name);
  if (it == tests().end()) throw Error(str_cat("no test named \"", name, "\""));
  return it->second(value, arguments);
}

}  // namespace onepass::jinja
