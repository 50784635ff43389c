// Philox4x32-10, a counter-based random generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1,
// 2, 3", SC 2011). Without state: what request `seed` draws for its n-th token depends on these two numbers alone,
// whatever else is in the batch, and a GPU computes the same bits as the host.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"

namespace onepass {

struct PhiloxWords {
  uint32_t word[4];

  bool operator==(const PhiloxWords&) const = default;
};

ONEPASS_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kMultiplier0) * counter.word[0];
    const uint64_t product1 = static_cast<uint64_t>(kMultiplier1) * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// Uniform in [0, 1), 53 bits: draw `index` of the stream `seed`.
ONEPASS_HOST_DEVICE inline double philox_uniform(uint64_t seed, uint64_t index) {
  const PhiloxWords bits = philox4x32({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}},
                                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t mantissa = ((static_cast<uint64_t>(bits.word[0]) << 32) | bits.word[1]) >> 11;
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace onepass
