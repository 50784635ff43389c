// The strides that kernels which read and write 16 bytes at a time can take.
#pragma once

#include <string_view>

#include "attention/attention_params.h"

namespace onepass {

// Unimplemented, naming the first of q's, k's, v's and out's strides that is no multiple of 16 bytes; `kernel` is for
// the message.
Status check_strides(const AttentionParams& params, std::string_view kernel);

}  // namespace onepass
