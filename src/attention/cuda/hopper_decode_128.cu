#include "attention/cuda/hopper_decode_launch.cuh"

namespace onepass::hopper_decode {

Status launch_decode_128(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  return launch_decode<128>(args, launch, stream);
}

}  // namespace onepass::hopper_decode
