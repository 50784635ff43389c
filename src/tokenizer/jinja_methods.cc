// Methods of strings, lists and dicts; items; the global functions.
#include <algorithm>
#include <ctime>
#include <map>

#include <utf8proc.h>

#include "base/strings.h"
#include "tokenizer/jinja_builtins.h"

namespace onepass::jinja {
namespace {

using Method = Value (*)(const Value&, const Arguments&);

std::string map_characters(const std::string& text, utf8proc_int32_t (*convert)(utf8proc_int32_t)) {
  std::string out;
  for (const std::string& character : characters(text)) {
    utf8proc_int32_t code = 0;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(character.data());
    if (utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(character.size()), &code) <= 0) {
      out += character;
      continue;
    }
    if (convert == utf8proc_toupper && code == 0xdf) {  // the one common letter that becomes two
      out += "SS";
      continue;
    }
    utf8proc_uint8_t buffer[4];
    const auto length = utf8proc_encode_char(convert(code), buffer);
    out.append(reinterpret_cast<const char*>(buffer), length);
  }
  return out;
}

// Python strips the Unicode white space too.
bool is_space(const std::string& character) {
  if (character.size() == 1) return std::string(" \t\n\r\v\f\x1c\x1d\x1e\x1f").find(character[0]) != std::string::npos;
  static constexpr const char* kSpaces[] = {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
                                            "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
                                            "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
  return std::any_of(std::begin(kSpaces), std::end(kSpaces), [&](const char* space) { return character == space; });
}

Value strip(const Value& v, const Arguments& a, bool left, bool right) {
  const Value set = a.get(0, "chars", Value::None{});
  std::vector<std::string> text = characters(v.string());
  const std::vector<std::string> chars = set.is_string() ? characters(set.string()) : std::vector<std::string>();
  const auto goes = [&](const std::string& c) {
    return set.is_string() ? std::find(chars.begin(), chars.end(), c) != chars.end() : is_space(c);
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end && goes(text[begin])) ++begin;
  while (right && end > begin && goes(text[end - 1])) --end;
  std::string out;
  for (size_t i = begin; i < end; ++i) out += text[i];
  return out;
}

Value split(const Value& v, const Arguments& a) {
  const std::string& text = v.string();
  const Value separator = a.get(0, "sep", Value::None{});
  int64_t limit = a.get(1, "maxsplit", int64_t{-1}).integer();
  List parts;
  if (separator.is_none()) {  // runs of white space, none at the ends
    std::string word;
    const std::vector<std::string> chars = characters(text);
    size_t i = 0;
    while (true) {
      while (i < chars.size() && is_space(chars[i])) ++i;
      if (i == chars.size()) return parts;
      word.clear();
      const bool rest = limit == 0;
      for (; i < chars.size() && (rest || !is_space(chars[i])); ++i) word += chars[i];
      parts.emplace_back(word);
      --limit;
    }
  }
  if (separator.str().empty()) throw Error("split: expected a separator that is not empty");
  size_t begin = 0;
  while (true) {
    const size_t end = limit == 0 ? std::string::npos : position_of(text, separator.string(), begin);
    if (end == std::string::npos) break;
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + separator.string().size();
    --limit;
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

Value replace(const Value& v, const Arguments& a) {
  const std::string& text = v.string();
  const std::string old = a.get(0, "old").str(), fresh = a.get(1, "new").str();
  int64_t count = a.get(2, "count", int64_t{-1}).is_none() ? -1 : a.get(2, "count", int64_t{-1}).integer();
  if (a.positional.size() + a.named.size() < 2) throw Error("replace: expected what to replace, and by what");
  std::string out;
  if (old.empty()) {  // Python puts the new text between all characters
    for (const std::string& character : characters(text)) {
      if (count-- != 0) out += fresh;
      out += character;
    }
    return count != 0 ? out + fresh : out;
  }
  size_t begin = 0;
  while (true) {
    const size_t end = count == 0 ? std::string::npos : position_of(text, old, begin);
    if (end == std::string::npos) return out + text.substr(begin);
    out += text.substr(begin, end - begin) + fresh;
    begin = end + old.size();
    --count;
  }
}

Value affix(const Value& v, const Arguments& a, bool prefix) {
  const Value wanted = a.get(0, "prefix");
  const List options = wanted.is_list() ? wanted.list() : List{wanted};
  return std::any_of(options.begin(), options.end(), [&](const Value& option) {
    if (!option.is_string())
      throw Error(str_cat("startswith, endswith: expected a string, found ", option.type_name()));
    return prefix ? v.string().starts_with(option.string()) : v.string().ends_with(option.string());
  });
}

Value title(const Value& v, const Arguments&) {
  std::string out;
  bool in_word = false;
  for (const std::string& character : characters(v.string())) {
    out += map_characters(character, in_word ? utf8proc_tolower : utf8proc_toupper);
    in_word = map_characters(character, utf8proc_toupper) != map_characters(character, utf8proc_tolower);
  }
  return out;
}

Value capitalize(const Value& v, const Arguments&) {
  std::string out;
  for (const std::string& character : characters(v.string())) {
    out += map_characters(character, out.empty() ? utf8proc_toupper : utf8proc_tolower);
  }
  return out;
}

Value find_text(const Value& v, const Arguments& a) {
  const size_t at = position_of(v.string(), a.get(0, "sub").str(), 0);
  if (at == std::string::npos) return int64_t{-1};
  return static_cast<int64_t>(characters(v.string().substr(0, at)).size());
}

Value count_text(const Value& v, const Arguments& a) {
  const std::string part = a.get(0, "sub").str();
  if (part.empty()) return static_cast<int64_t>(characters(v.string()).size() + 1);
  int64_t count = 0;
  for (size_t at = position_of(v.string(), part, 0); at != std::string::npos;
       at = position_of(v.string(), part, at + part.size()))
    ++count;
  return count;
}

Value all_characters(const Value& v, bool (*holds)(const std::string&)) {
  const auto text = characters(v.string());
  return !text.empty() && std::all_of(text.begin(), text.end(), holds);
}

bool is_digit(const std::string& c) { return c.size() == 1 && c[0] >= '0' && c[0] <= '9'; }

// "{} and {0} and {name}", without format specifications.
Value format_braces(const Value& v, const Arguments& a) {
  const std::string& text = v.string();
  std::string out;
  size_t automatic = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] == '{' || text[i] == '}') && i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
    } else if (text[i] == '{') {
      const size_t end = text.find('}', i);
      if (end == std::string::npos) throw Error("format: a { without its }");
      const std::string field = text.substr(i + 1, end - i - 1);
      const bool index = field.size() < 6 && field.find_first_not_of("0123456789") == std::string::npos;
      const Value value =
          index ? a.get(field.empty() ? automatic++ : std::stoul(field), "") : a.get(SIZE_MAX, field.c_str());
      if (value.is_undefined()) throw Error(str_cat("format: no value for {", field, "}"));
      out += value.str();
      i = end;
    } else {
      out += text[i];
    }
  }
  return out;
}

const std::map<std::string, Method>& string_methods() {
  static const std::map<std::string, Method> table = {
      {"strip", [](const Value& v, const Arguments& a) { return strip(v, a, true, true); }},
      {"lstrip", [](const Value& v, const Arguments& a) { return strip(v, a, true, false); }},
      {"rstrip", [](const Value& v, const Arguments& a) { return strip(v, a, false, true); }},
      {"split", split},
      {"replace", replace},
      {"startswith", [](const Value& v, const Arguments& a) { return affix(v, a, true); }},
      {"endswith", [](const Value& v, const Arguments& a) { return affix(v, a, false); }},
      {"upper", [](const Value& v, const Arguments&) -> Value { return map_characters(v.string(), utf8proc_toupper); }},
      {"lower", [](const Value& v, const Arguments&) -> Value { return map_characters(v.string(), utf8proc_tolower); }},
      {"title", title},
      {"capitalize", capitalize},
      {"join",
       [](const Value& v, const Arguments& a) {
         return apply_filter("join", a.get(0, "iterable"), {{v}, {}});
       }},
      {"find", find_text},
      {"count", count_text},
      {"format", format_braces},
      {"isdigit", [](const Value& v, const Arguments&) { return all_characters(v, is_digit); }},
      {"isspace", [](const Value& v, const Arguments&) { return all_characters(v, is_space); }},
      {"splitlines",
       [](const Value& v, const Arguments&) -> Value {
         List lines = split(v, {{"\n"}, {}}).list();
         if (!lines.empty() && lines.back().string().empty()) lines.pop_back();
         return lines;
       }},
  };
  return table;
}

Value items(const Value& v, const Arguments&) {
  List result;
  for (const auto& [key, value] : v.dict()) result.emplace_back(Value::Tuple{std::make_shared<List>(List{key, value})});
  return result;
}

const std::map<std::string, Method>& dict_methods() {
  static const std::map<std::string, Method> table = {
      {"items", items},
      {"keys", [](const Value& v, const Arguments&) -> Value { return v.iterate(); }},
      {"values",
       [](const Value& v, const Arguments&) -> Value {
         List result;
         for (const auto& entry : v.dict()) result.push_back(entry.second);
         return result;
       }},
      {"get",
       [](const Value& v, const Arguments& a) -> Value {
         const Value key = a.get(0, "key");
         const Value* found = key.is_string() ? find(v.dict(), key.string()) : nullptr;
         return found != nullptr ? *found : a.get(1, "default", Value::None{});
       }},
      {"copy", [](const Value& v, const Arguments&) -> Value { return Dict(v.dict()); }},
  };
  return table;
}

// transformers runs templates in Jinja2's immutable sandbox: append and its kin are refused there too.
const std::map<std::string, Method>& list_methods() {
  static const std::map<std::string, Method> table = {
      {"index",
       [](const Value& v, const Arguments& a) -> Value {
         const auto at = std::find(v.list().begin(), v.list().end(), a.get(0, "value"));
         if (at == v.list().end()) throw Error("index: the list has no such item");
         return static_cast<int64_t>(at - v.list().begin());
       }},
      {"count",
       [](const Value& v, const Arguments& a) -> Value {
         return static_cast<int64_t>(std::count(v.list().begin(), v.list().end(), a.get(0, "value")));
       }},
  };
  return table;
}

const std::map<std::string, Method>* methods_of(const Value& value) {
  if (value.is_string()) return &string_methods();
  if (value.is_dict()) return &dict_methods();
  if (value.is_list()) return &list_methods();
  return nullptr;
}

Value range(const Arguments& a) {
  constexpr int64_t kMaxRange = 100'000;  // the sandbox's limit
  if (a.positional.empty()) throw Error("range: expected a bound");
  const int64_t begin = a.positional.size() > 1 ? a.positional[0].integer() : 0;
  const int64_t end = a.positional.size() > 1 ? a.positional[1].integer() : a.positional[0].integer();
  const int64_t stride = a.positional.size() > 2 ? a.positional[2].integer() : 1;
  if (stride == 0) throw Error("range: expected a step other than 0");
  List result;
  for (int64_t i = begin; stride > 0 ? i < end : i > end;) {
    if (result.size() >= kMaxRange) throw Error(str_cat("range: more than ", kMaxRange, " items"));
    result.emplace_back(i);
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  return result;
}

Value strftime_now(const Arguments& a) {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  ::localtime_r(&now, &local);
  char buffer[256];
  const size_t length = std::strftime(buffer, sizeof(buffer), a.get(0, "format").str().c_str(), &local);
  return std::string(buffer, length);
}

Dict merged(const Arguments& a) {
  Dict result;
  for (const Value& base : a.positional) {
    if (!base.is_dict()) throw Error(str_cat("expected a mapping, found ", base.type_name()));
    for (const auto& [key, value] : base.dict()) assign(result, key, value);
  }
  for (const auto& [key, value] : a.named) assign(result, key, value);
  return result;
}

}  // namespace

bool has_method(const Value& value, const std::string& name) {
  const auto* methods = methods_of(value);
  return methods != nullptr && methods->contains(name);
}

Value call_method(const Value& value, const std::string& name, const Arguments& arguments) {
  const auto* methods = methods_of(value);
  if (methods == nullptr || !methods->contains(name)) throw Error(str_cat(value.type_name(), " has no method ", name));
  return methods->at(name)(value, arguments);
}

Value get_item(const Value& value, const Value& key) {
  if (value.is_undefined()) throw Error(str_cat(value.type_name(), " has no items"));
  if ((value.is_dict() || value.is_namespace()) && key.is_string()) {
    const Value* found = find(value.dict(), key.string());
    return found != nullptr ? *found : Value(Value::Undefined{key.string()});
  }
  if ((value.is_list() || value.is_string()) && key.is_int()) {
    const List items = value.iterate();
    const int64_t size = static_cast<int64_t>(items.size());
    const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
    if (index >= 0 && index < size) return items[index];
  }
  return Value::Undefined{key.str()};
}

std::string format_percent(const std::string& format, const List& values) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == '%') {
      out += '%';
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < format.size() && std::string_view("-+ 0123456789.").find(format[end]) != std::string_view::npos) ++end;
    const char kind = end < format.size() ? format[end] : '\0';
    const std::string flags = format.substr(i + 1, end - i - 1);
    if (next >= values.size()) throw Error("format: fewer values than the format names");
    if (flags.size() > 8) throw Error("format: a width too large");
    const Value& value = values[next++];
    char buffer[512];
    if (kind == 's') {
      if (!flags.empty()) throw Error("format: %s with a width is not supported");
      out += value.str();
    } else if (kind == 'd' || kind == 'i') {
      const int64_t number = value.is_float() ? static_cast<int64_t>(value.number()) : value.integer();
      std::snprintf(buffer, sizeof(buffer), ("%" + flags + "lld").c_str(), static_cast<long long>(number));
      out += buffer;
    } else if (kind == 'f' || kind == 'g' || kind == 'e') {
      std::snprintf(buffer, sizeof(buffer), ("%" + flags + kind).c_str(), value.number());
      out += buffer;
    } else {
      throw Error(str_cat("format: %", std::string(1, kind), " is not supported"));
    }
    i = end;
  }
  return out;
}

Dict global_functions() {
  const auto function = [](Value (*f)(const Arguments&)) { return Value(std::make_shared<Function>(f)); };
  return {{"range", function(range)},
          {"strftime_now", function(strftime_now)},
          {"dict", function([](const Arguments& a) -> Value { return merged(a); })},
          {"namespace", function([](const Arguments& a) -> Value {
             Dict attributes = merged(a);
             for (const auto& [name, value] : attributes) check_attribute(value);
             return Value::Namespace{std::make_shared<Dict>(std::move(attributes))};
           })},
          {"raise_exception", function([](const Arguments& a) -> Value { throw Error(a.get(0, "message").str()); })}};
}

}  // namespace onepass::jinja
