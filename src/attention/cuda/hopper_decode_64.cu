#include "attention/cuda/hopper_decode_launch.cuh"

namespace onepass::hopper_decode {

Status launch_decode_64(const RunArgs& args, const Launch& launch, CUstream_st* stream) {
  if (launch.pairs) return launch_pairs(args, launch, stream);
  return launch_decode<64>(args, launch, stream);
}

}  // namespace onepass::hopper_decode
