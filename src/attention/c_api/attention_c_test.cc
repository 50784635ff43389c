// The C functions where no GPU is needed: statuses, lines of text, and structs as the C++ interface sees them.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "attention/c_api/structs.h"
#include "attention/cuda/flash_attention_cuda.h"
#include "onepass/attention.h"

namespace onepass {
namespace {

TEST(AttentionC, VersionAndKernels) {
  EXPECT_EQ(onepass_attention_version(), ONEPASS_ATTENTION_VERSION);
  const auto kernels = cuda_attention_kernels();
  for (size_t i = 0; i < kernels.size(); ++i) {
    EXPECT_EQ(onepass_attention_kernel_name(onepass_attention_kernel_at(static_cast<int32_t>(i))), kernels[i]->name);
  }
  EXPECT_EQ(onepass_attention_kernel_at(static_cast<int32_t>(kernels.size())), nullptr);
  EXPECT_EQ(onepass_attention_kernel_at(-1), nullptr);
  EXPECT_EQ(onepass_attention_kernel_name(nullptr), nullptr);
}

TEST(AttentionC, NoSuchGpu) {
  char message[256] = "";
  onepass_device* device = nullptr;
  EXPECT_EQ(onepass_device_open(99, &device, message, sizeof(message)), ONEPASS_NO_DEVICE);
  EXPECT_EQ(device, nullptr);
  EXPECT_NE(message[0], '\0');
  onepass_device_close(device);
}

TEST(AttentionC, MessagesFitTheCallersBuffer) {
  const onepass_attention_params params = onepass_attention_params_default();
  const onepass_attention_kernel* kernel = nullptr;
  char message[8];
  std::memset(message, 'x', sizeof(message));
  EXPECT_EQ(onepass_attention_choose(nullptr, &params, "auto", &kernel, message, 7), ONEPASS_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "device");
  EXPECT_EQ(message[7], 'x');
  EXPECT_EQ(onepass_attention_choose(nullptr, &params, "auto", &kernel, nullptr, 0), ONEPASS_INVALID_ARGUMENT);
}

TEST(AttentionC, StructsAreChecked) {
  onepass_attention_params params = onepass_attention_params_default();
  EXPECT_TRUE(c_api::attention_params(&params).ok());
  EXPECT_FALSE(c_api::attention_params(nullptr).ok());
  params.causal = 2;
  EXPECT_EQ(c_api::attention_params(&params).status().message(), "attention: causal: expected 0 or 1, found 2");
  params = onepass_attention_params_default();
  params.kv_dtype = 7;
  EXPECT_EQ(c_api::attention_params(&params).status().message(),
            "attention: kv_dtype: expected 0 (float32), 1 (float16) or 2 (bfloat16), found 7");
  params.struct_size = 12;
  EXPECT_EQ(c_api::attention_params(&params).status().message(),
            str_cat("onepass_attention_params: struct_size: expected ", sizeof(params), " (version 1), found 12"));
  onepass_merge_params merge = onepass_merge_params_default();
  merge.num_stacks = kMaxPartStacks + 1;
  EXPECT_EQ(c_api::merge_params(&merge).status().message(),
            "merge: num_stacks: expected 0 to 8 with an address of stacks, found 9");
  onepass_append_kv_params append = onepass_append_kv_params_default();
  append.rotary_interleaved = -1;
  EXPECT_EQ(c_api::append_kv_params(&append).status().message(),
            "append_kv: rotary_interleaved: expected 0 or 1, found -1");
}

TEST(AttentionC, DefaultsAreThoseOfTheCppStruct) {
  onepass_attention_params params = onepass_attention_params_default();
  const AttentionParams from_c = *c_api::attention_params(&params);
  const AttentionParams expected;
  EXPECT_EQ(from_c.softmax_scale, expected.softmax_scale);
  EXPECT_EQ(from_c.window_left, expected.window_left);
  EXPECT_EQ(from_c.window_right, expected.window_right);
  EXPECT_EQ(from_c.num_splits, expected.num_splits);
  EXPECT_EQ(from_c.causal, expected.causal);
  params.q_dtype = ONEPASS_BFLOAT16;
  params.window_left = 5;
  params.page_size = 64;
  params.v_head_stride = 128;
  params.cu_seqlens_k = reinterpret_cast<const int32_t*>(16);
  const AttentionParams changed = *c_api::attention_params(&params);
  EXPECT_EQ(changed.q_dtype, DType::kBF16);
  EXPECT_EQ(changed.window_left, 5);
  EXPECT_EQ(changed.page_size, 64);
  EXPECT_EQ(changed.v_head_stride, 128);
  EXPECT_EQ(changed.cu_seqlens_k, params.cu_seqlens_k);
}

}  // namespace
}  // namespace onepass
