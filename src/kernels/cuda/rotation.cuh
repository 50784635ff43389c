// The rotary embedding's angle, for the kernels that rotate on the way.
#pragma once

namespace onepass {

// cos and sin of position * frequency. The angle is reduced in double, as float32 loses the position at 100k tokens.
__device__ inline float2 rotation(int position, double inv_freq, float factor) {
  const double turns = position * (inv_freq * 0.15915494309189535);
  float sine, cosine;
  sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
  return {cosine * factor, sine * factor};
}

}  // namespace onepass
