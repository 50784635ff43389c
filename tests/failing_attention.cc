// A double of the attention backend that breaks down. Programs that are linked with it and with
// --wrap=make_attention_backend (tests/CMakeLists.txt) run on it; the engine knows nothing of it.
//
// ONEPASS_TEST_FAILURE=error:N: from the N-th call on run() and place_pages() return an error, as where a launch fails.
// ONEPASS_TEST_FAILURE=fault:N: the N-th of them queues a kernel that writes where no memory is (on a GPU): the
// launches succeed, and the error is found later.
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "attention/attention_backend.h"
#ifdef ONEPASS_HAVE_CUDA
#include "kernels/cuda/fill_random.h"
#endif

namespace onepass {
namespace {

class FailingAttention final : public AttentionBackend {
 public:
  FailingAttention(std::unique_ptr<AttentionBackend> sound, bool faults, int calls)
      : sound_(std::move(sound)), faults_(faults), calls_left_(calls) {}

  std::string_view name() const override { return sound_->name(); }
  size_t upload_bytes() const override { return sound_->upload_bytes(); }
  void set_batch(const AttentionBatch& batch, StepUpload& upload) override { sound_->set_batch(batch, upload); }
  Status plan(const Stream& stream) override { return sound_->plan(stream); }
  PagedDecodes decodes() const override { return sound_->decodes(); }

  Status place_pages(const Stream& stream) override {
    ONEPASS_RETURN_IF_ERROR(sound_->place_pages(stream));
    return count_call(stream);
  }
  Status run(const AttentionLayer& layer, const AttentionInputs& io, const Stream& stream) override {
    ONEPASS_RETURN_IF_ERROR(sound_->run(layer, io, stream));
    return count_call(stream);
  }

 private:
  Status count_call([[maybe_unused]] const Stream& stream) {
    if (--calls_left_ > 0) return ok_status();
    if (!faults_) return absl::InternalError("attention: the device has failed");
#ifdef ONEPASS_HAVE_CUDA
    if (calls_left_ == 0) {
      return run_fill_random_cuda({.data = reinterpret_cast<void*>(16), .dtype = DType::kF32, .elements = 1},
                                  stream.cuda);
    }
#endif
    return ok_status();
  }

  const std::unique_ptr<AttentionBackend> sound_;
  const bool faults_;
  int calls_left_;
};

}  // namespace

// What the linker calls the function of the library, and what it calls instead of it.
StatusOr<std::unique_ptr<AttentionBackend>> make_sound_attention(
    const AttentionOptions& options, KvPool& pool, const RequestTable& table,
    const Stream& stream) __asm__("__real_" ONEPASS_MAKE_ATTENTION_SYMBOL);
StatusOr<std::unique_ptr<AttentionBackend>> make_failing_attention(
    const AttentionOptions& options, KvPool& pool, const RequestTable& table,
    const Stream& stream) __asm__("__wrap_" ONEPASS_MAKE_ATTENTION_SYMBOL);

StatusOr<std::unique_ptr<AttentionBackend>> make_failing_attention(const AttentionOptions& options, KvPool& pool,
                                                                   const RequestTable& table, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(std::unique_ptr<AttentionBackend> sound, make_sound_attention(options, pool, table, stream));
  const char* const failure = std::getenv("ONEPASS_TEST_FAILURE");
  if (failure == nullptr) return sound;
  const std::string text = failure;
  const size_t colon = text.find(':');
  return std::make_unique<FailingAttention>(std::move(sound), text.substr(0, colon) == "fault",
                                            std::stoi(text.substr(colon + 1)));
}

}  // namespace onepass
