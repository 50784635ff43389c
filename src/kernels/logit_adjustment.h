// What a request's sampling parameters do to the logit of one token.
#pragma once

#include <cstdint>

namespace onepass {

// In this order: the bias is added, the repetition penalty divides or multiplies, presence and frequency penalties are
// subtracted; a banned token is impossible.
struct LogitAdjustment {
  int32_t token = 0;
  float bias = 0.0f;
  int32_t count = 0;        // times generated, as far as the host knows
  uint8_t is_repeated = 0;  // in the prompt or generated: the repetition penalty acts
  uint8_t is_banned = 0;
};

}  // namespace onepass
