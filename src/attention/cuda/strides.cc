#include "attention/cuda/strides.h"

namespace onepass {

Status check_strides(const AttentionParams& p, std::string_view kernel) {
  struct Stride {
    const char* name;
    int64_t elements;
    DType dtype;
  };
  const bool paged = p.page_table != nullptr;
  const Stride strides[] = {{"q_row_stride", p.q_row_stride, p.q_dtype},
                            {"q_head_stride", p.q_head_stride, p.q_dtype},
                            {"k_row_stride", p.k_row_stride, p.kv_dtype},
                            {"k_head_stride", p.k_head_stride, p.kv_dtype},
                            {"k_page_stride", paged ? p.k_page_stride : 0, p.kv_dtype},
                            {"v_row_stride", p.v_row_stride, p.kv_dtype},
                            {"v_head_stride", p.v_head_stride, p.kv_dtype},
                            {"v_page_stride", paged ? p.v_page_stride : 0, p.kv_dtype},
                            {"out_row_stride", p.out_row_stride, p.out_dtype},
                            {"out_head_stride", p.out_head_stride, p.out_dtype}};
  for (const Stride& stride : strides) {
    if (stride.elements * static_cast<int64_t>(size_of(stride.dtype)) % 16 == 0) continue;
    return unimplemented("attention: ", stride.name, ": ", kernel, ": expected a multiple of 16 bytes, found ",
                         stride.elements, " elements of ", to_string(stride.dtype));
  }
  return ok_status();
}

}  // namespace onepass
