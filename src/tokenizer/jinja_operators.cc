#include "tokenizer/jinja_operators.h"

#include <cmath>

#include "base/strings.h"
#include "tokenizer/jinja_builtins.h"

namespace onepass::jinja {
namespace {

Value repeat(const Value& value, int64_t count) {
  const size_t size = value.is_string() ? value.string().size() : value.list().size() * 16;
  if (size == 0) return value;
  if (count > 0 && size * static_cast<double>(count) > static_cast<double>(kMaxText))
    throw Error("a repetition too long");
  std::string text;
  List list;
  for (int64_t i = 0; i < count; ++i) {
    if (value.is_string()) {
      text += value.string();
    } else {
      list.insert(list.end(), value.list().begin(), value.list().end());
    }
  }
  return value.is_string() ? Value(text) : Value(list);
}

Value arithmetic(const std::string& op, const Value& a, const Value& b) {
  if (op == "/" || op == "//" || op == "%") {
    if (b.number() == 0) throw Error("division by zero");
  }
  if (op == "/") return a.number() / b.number();
  if (a.is_float() || b.is_float() || (op == "**" && b.integer() < 0)) {
    const double x = a.number(), y = b.number();
    if (op == "+") return x + y;
    if (op == "-") return x - y;
    if (op == "*") return x * y;
    if (op == "//") return std::floor(x / y);
    if (op == "%") return x - std::floor(x / y) * y;
    return std::pow(x, y);
  }
  const int64_t x = a.integer(), y = b.integer();
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(x, y, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(x, y, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(x, y, &result);
  } else if (op == "//" || op == "%") {
    if (y == -1) {  // INT64_MIN / -1 overflows
      overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &result);
    } else {
      const int64_t quotient = x / y - (x % y != 0 && (x % y < 0) != (y < 0) ? 1 : 0);
      result = op == "//" ? quotient : x - quotient * y;
    }
  } else {
    result = 1;
    // Powers of -1 go by the exponent's parity, those of 0 and 1 do not change: no loop of 2^63 rounds.
    const int64_t rounds = x == -1 ? y % 2 : x == 0 || x == 1 ? 0 : y;
    for (int64_t i = 0; i < rounds && !overflow; ++i) overflow = __builtin_mul_overflow(result, x, &result);
    if (x == 0 && y > 0) result = 0;
  }
  if (overflow) throw Error("a whole number too large");
  return result;
}

}  // namespace

Value unary(const std::string& op, const Value& value) {
  if (op == "not") return !value.truth();
  if (value.is_float()) return op == "-" ? -value.number() : value.number();
  const int64_t number = value.integer();
  if (op == "-" && number == INT64_MIN) throw Error("a whole number too large");
  return op == "-" ? -number : number;
}

Value binary(const std::string& op, const Value& a, const Value& b) {
  if (op == "~") return a.str() + b.str();
  if (op == "+" && a.is_string() && b.is_string()) return a.string() + b.string();
  if (op == "+" && a.is_list() && b.is_list()) {
    List joined = a.list();
    joined.insert(joined.end(), b.list().begin(), b.list().end());
    return joined;
  }
  if (op == "*" && (a.is_string() || a.is_list()) && b.is_int()) return repeat(a, b.integer());
  if (op == "*" && (b.is_string() || b.is_list()) && a.is_int()) return repeat(b, a.integer());
  if (op == "%" && a.is_string()) return format_percent(a.string(), b.is<Value::Tuple>() ? b.list() : List{b});
  if (!a.is_number() || !b.is_number()) {
    throw Error(str_cat("cannot compute ", a.type_name(), " ", op, " ", b.type_name()));
  }
  return arithmetic(op, a, b);
}

}  // namespace onepass::jinja
