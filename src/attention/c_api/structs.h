// The structs of onepass/attention.h as those of the C++ interface.
#pragma once

#include <cstddef>
#include <string_view>

#include "attention/attention_params.h"
#include "attention/cuda/merge.h"
#include "kernels/cuda/append_kv.h"
#include "onepass/attention.h"

namespace onepass::c_api {

// A struct of version 1, which is the only one yet: a later library tells by the size which fields a struct has.
template <typename T>
Status check_struct(const T* given, std::string_view name) {
  if (given == nullptr) return invalid_argument(name, ": expected an address, found null");
  if (given->struct_size == sizeof(T)) return ok_status();
  return invalid_argument(name, ": struct_size: expected ", sizeof(T), " (version ", ONEPASS_ATTENTION_VERSION,
                          "), found ", given->struct_size);
}

// They look at the structs' size, dtypes and switches; the rest is the kernels' to check.
StatusOr<AttentionParams> attention_params(const onepass_attention_params* params);
StatusOr<MergeParams> merge_params(const onepass_merge_params* params);
StatusOr<AppendKvParams> append_kv_params(const onepass_append_kv_params* params);

}  // namespace onepass::c_api
