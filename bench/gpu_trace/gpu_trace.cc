// Records every kernel, copy and fill of a program's GPUs and the CUDA runtime calls of its threads, by CUPTI; also the
// kernels of a graph, one by one. The driver loads it into a program that knows nothing of it:
//
//     CUDA_INJECTION64_PATH=build/release/lib/libonepass_gpu_trace.so ONEPASS_GPU_TRACE=records.tsv onepass bench
//     latency ... python3 bench/gpu_trace/gpu_trace.py records.tsv --output trace.json
//
// A record is a line: kind, start and end in ns, stream (a call's thread), graph (0: none), correlation (what a call
// has launched has its number), what it is. A program that is killed leaves no whole file.
#include <cupti.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace {

// CUPTI fills each with zeros in the thread that launches: 4 MiB held up a step by 1.5 ms, and the GPU waited.
constexpr size_t kBufferBytes = size_t{256} << 10;
constexpr size_t kBufferAlignment = 8;

// CUPTI's callbacks are handed no pointer of ours, and they come until the very end of the process: this one is never
// destroyed.
class Recorder {
 public:
  static Recorder& get() {
    static Recorder& recorder = *new Recorder;
    return recorder;
  }

  bool open(const char* path) {
    file_ = std::fopen(path, "w");
    if (file_ == nullptr) std::perror(path);
    return file_ != nullptr;
  }

  // Any thread: CUPTI has one of its own, and the flush at the end is the program's.
  void write(uint8_t* buffer, size_t size) {
    const std::lock_guard lock(mutex_);
    CUpti_Activity* record = nullptr;
    while (file_ != nullptr && cuptiActivityGetNextRecord(buffer, size, &record) == CUPTI_SUCCESS) write(*record);
  }

  void close(size_t dropped) {
    const std::lock_guard lock(mutex_);
    if (dropped > 0) std::fprintf(stderr, "gpu_trace: %zu records are missing\n", dropped);
    const bool failed = std::ferror(file_) != 0;
    if (std::fclose(file_) != 0 || failed)
      std::fprintf(stderr, "gpu_trace: the file of records could not be written\n");
    file_ = nullptr;
  }

 private:
  void line(const char* kind, uint64_t start, uint64_t end, uint32_t stream, uint32_t graph, uint32_t correlation,
            const char* what) {
    std::fprintf(file_, "%s\t%llu\t%llu\t%u\t%u\t%u\t%s\n", kind, static_cast<unsigned long long>(start),
                 static_cast<unsigned long long>(end), stream, graph, correlation, what);
  }

  void write(const CUpti_Activity& activity) {
    switch (activity.kind) {
      case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const auto& it = reinterpret_cast<const CUpti_ActivityKernel10&>(activity);
        line("kernel", it.start, it.end, it.streamId, it.graphId, it.correlationId, it.name);
        break;
      }
      case CUPTI_ACTIVITY_KIND_MEMCPY: {
        const auto& it = reinterpret_cast<const CUpti_ActivityMemcpy6&>(activity);
        char what[64];
        const char* way = it.copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "to the device"
                          : it.copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "to the host"
                                                                           : "on the device";
        std::snprintf(what, sizeof(what), "copy of %llu bytes %s", static_cast<unsigned long long>(it.bytes), way);
        line("copy", it.start, it.end, it.streamId, it.graphId, it.correlationId, what);
        break;
      }
      case CUPTI_ACTIVITY_KIND_MEMSET: {
        const auto& it = reinterpret_cast<const CUpti_ActivityMemset4&>(activity);
        line("fill", it.start, it.end, it.streamId, it.graphId, it.correlationId, "fill");
        break;
      }
      case CUPTI_ACTIVITY_KIND_RUNTIME: {
        const auto& it = reinterpret_cast<const CUpti_ActivityAPI&>(activity);
        const char* name = nullptr;
        if (cuptiGetCallbackName(CUPTI_CB_DOMAIN_RUNTIME_API, it.cbid, &name) != CUPTI_SUCCESS) name = "a call";
        line("call", it.start, it.end, it.threadId, 0, it.correlationId, name);
        break;
      }
      default:
        break;
    }
  }

  std::mutex mutex_;
  std::FILE* file_ = nullptr;  // guarded by mutex_
};

void CUPTIAPI buffer_requested(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *max_records = 0;  // as many as fit
}

void CUPTIAPI buffer_completed(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  Recorder::get().write(buffer, valid);
  std::free(buffer);
}

void finish() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  size_t dropped = 0;
  cuptiActivityGetNumDroppedRecords(nullptr, 0, &dropped);
  Recorder::get().close(dropped);
}

bool succeeds(CUptiResult result, const char* what) {
  const char* why = "";
  if (result != CUPTI_SUCCESS && cuptiGetResultString(result, &why) == CUPTI_SUCCESS) {
    std::fprintf(stderr, "gpu_trace: %s: %s\n", what, why);
  }
  return result == CUPTI_SUCCESS;
}

}  // namespace

// What the driver calls when it is initialised. 1: all is well; 0 only leaves this library out.
extern "C" int InitializeInjection() {
  const char* path = std::getenv("ONEPASS_GPU_TRACE");
  if (path == nullptr) {
    std::fprintf(stderr, "gpu_trace: ONEPASS_GPU_TRACE: expected the file to write, found nothing\n");
    return 0;
  }
  if (!succeeds(cuptiActivityRegisterCallbacks(buffer_requested, buffer_completed), "callbacks")) return 0;
  if (!Recorder::get().open(path)) return 0;
  for (const CUpti_ActivityKind kind : {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                        CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_RUNTIME}) {
    if (!succeeds(cuptiActivityEnable(kind), "activities")) return 0;
  }
  std::atexit(finish);
  return 1;
}
