// Errors that a person or a file can cause: bad request, truncated weights, unknown option value.
// A message is one line and names the thing, what was expected and what was found.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/strings.h"

namespace onepass {

using absl::Status;
using absl::StatusOr;

inline Status ok_status() { return absl::OkStatus(); }

template <typename... Args>
Status invalid_argument(const Args&... args) {
  return absl::InvalidArgumentError(str_cat(args...));
}

template <typename... Args>
Status not_found(const Args&... args) {
  return absl::NotFoundError(str_cat(args...));
}

template <typename... Args>
Status unimplemented(const Args&... args) {
  return absl::UnimplementedError(str_cat(args...));
}

template <typename... Args>
Status resource_exhausted(const Args&... args) {
  return absl::ResourceExhaustedError(str_cat(args...));
}

// The same status with `context` before its message: "models/x/config.json: hidden_size: expected ...".
template <typename... Args>
Status annotate(const Status& status, const Args&... context) {
  return Status(status.code(), str_cat(context..., ": ", status.message()));
}

}  // namespace onepass

#define ONEPASS_CONCAT_INNER(a, b) a##b
#define ONEPASS_CONCAT(a, b) ONEPASS_CONCAT_INNER(a, b)

#define ONEPASS_RETURN_IF_ERROR(expression)                        \
  do {                                                             \
    if (::onepass::Status status_ = (expression); !status_.ok()) { \
      return status_;                                              \
    }                                                              \
  } while (false)

// ONEPASS_ASSIGN_OR_RETURN(auto file, MappedFile::open(path));
#define ONEPASS_ASSIGN_OR_RETURN(lhs, expression) \
  ONEPASS_ASSIGN_OR_RETURN_INNER(ONEPASS_CONCAT(status_or_, __LINE__), lhs, expression)
#define ONEPASS_ASSIGN_OR_RETURN_INNER(holder, lhs, expression) \
  auto holder = (expression);                                   \
  if (!holder.ok()) return std::move(holder).status();          \
  lhs = std::move(holder).value()
