#include "attention/cuda/testing/environment.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "base/strings.h"

namespace onepass {
namespace {

constexpr const char* kName = "ONEPASS_TEST_ENVIRONMENT_TEST";

class EnvironmentTest : public testing::Test {
 protected:
  void TearDown() override { ::unsetenv(kName); }
};

TEST_F(EnvironmentTest, TakesWholeNumbers) {
  EXPECT_EQ(whole_number_from_environment(kName, 7, 1).value(), 7);
  for (const int64_t number : {int64_t{0}, int64_t{1}, int64_t{200}, std::numeric_limits<int64_t>::max()}) {
    ::setenv(kName, std::to_string(number).c_str(), 1);
    EXPECT_EQ(whole_number_from_environment(kName, 7, 0).value(), number);
  }
}

TEST_F(EnvironmentTest, RefusesTheRest) {
  for (const char* const text : {"", "abc", "0", "-1", "12x", " 12", "1.5", "9223372036854775808"}) {
    ::setenv(kName, text, 1);
    const StatusOr<int64_t> number = whole_number_from_environment(kName, 7, 1);
    ASSERT_FALSE(number.ok()) << text;
    EXPECT_EQ(number.status().message(),
              str_cat(kName, ": expected a whole number of 1 or more, found \"", text, "\""));
  }
}

}  // namespace
}  // namespace onepass
