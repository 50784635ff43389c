// What the language brings along: filters, tests, the methods of strings, lists and dicts, functions.
#pragma once

#include <string>

#include "tokenizer/jinja_value.h"

namespace onepass::jinja {

// value | name(arguments); throws Error for an unknown filter.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);

// value is name(arguments); throws Error for an unknown test.
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

// value.name(arguments) of a string, list or dict; throws Error for an unknown method. has_method says whether it is
// one.
bool has_method(const Value& value, const std::string& name);
Value call_method(const Value& value, const std::string& name, const Arguments& arguments);

// value.name or value[key] where it is data; Undefined when there is none.
Value get_item(const Value& value, const Value& key);

// Python's "template % values" and range(), namespace(), dict(), raise_exception(), strftime_now().
std::string format_percent(const std::string& format, const List& values);
Dict global_functions();

}  // namespace onepass::jinja
