// Broken invariants: errors in this program, never in its input. A failed check throws InvariantError with both values
// printed; the engine's loop (and main) catches it, stops that engine and answers what is in flight. Nothing else
// throws.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace onepass {

class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void check_failed(const char* file, int line, const std::string& message);

template <typename A, typename B>
[[noreturn]] void check_failed(const char* file, int line, const char* text, const A& a, const B& b) {
  std::ostringstream message;
  message << text << " (" << a << " against " << b << ")";
  check_failed(file, line, message.str());
}

}  // namespace onepass

#define ONEPASS_CHECK(condition)                                               \
  do {                                                                         \
    if (!(condition)) ::onepass::check_failed(__FILE__, __LINE__, #condition); \
  } while (false)

#define ONEPASS_CHECK_OP(a, op, b)                                                        \
  do {                                                                                    \
    const auto& check_a_ = (a);                                                           \
    const auto& check_b_ = (b);                                                           \
    if (!(check_a_ op check_b_)) {                                                        \
      ::onepass::check_failed(__FILE__, __LINE__, #a " " #op " " #b, check_a_, check_b_); \
    }                                                                                     \
  } while (false)

#define ONEPASS_CHECK_EQ(a, b) ONEPASS_CHECK_OP(a, ==, b)
#define ONEPASS_CHECK_NE(a, b) ONEPASS_CHECK_OP(a, !=, b)
#define ONEPASS_CHECK_LT(a, b) ONEPASS_CHECK_OP(a, <, b)
#define ONEPASS_CHECK_LE(a, b) ONEPASS_CHECK_OP(a, <=, b)
#define ONEPASS_CHECK_GT(a, b) ONEPASS_CHECK_OP(a, >, b)
#define ONEPASS_CHECK_GE(a, b) ONEPASS_CHECK_OP(a, >=, b)
