#include "tensor/cuda/cuda_stream.h"

#include "tensor/cuda/cuda_status.h"

namespace onepass {

StatusOr<CudaStream> CudaStream::create() {
  CudaStream stream;
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status CudaStream::synchronize() const { return cuda_status(cudaStreamSynchronize(stream_), "work on the GPU"); }

Status CudaStream::wait(CUstream_st* stream, const CudaEvent& event) {
  return cuda_status(cudaStreamWaitEvent(stream, event.get()), "cudaStreamWaitEvent");
}

StatusOr<CudaEvent> CudaEvent::create() {
  CudaEvent event;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaEventCreate(&event.event_), "cudaEventCreate"));
  return event;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

Status CudaEvent::record(CUstream_st* stream) {
  return cuda_status(cudaEventRecord(event_, stream), "cudaEventRecord");
}

Status CudaEvent::synchronize() const { return cuda_status(cudaEventSynchronize(event_), "work on the GPU"); }

StatusOr<double> CudaEvent::seconds_since(const CudaEvent& start) const {
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaEventSynchronize(event_), "work on the GPU"));
  float milliseconds = 0.0f;
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime"));
  return milliseconds * 1e-3;
}

StatusOr<CudaGraph> CudaGraph::capture(const CudaStream& stream, absl::FunctionRef<Status()> queue) {
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture"));
  const Status queued = queue();
  // The capture ends in any case: the stream would be unusable otherwise.
  CudaGraph graph;
  const Status ended = cuda_status(cudaStreamEndCapture(stream.get(), &graph.recorded_), "cudaStreamEndCapture");
  ONEPASS_RETURN_IF_ERROR(queued);
  ONEPASS_RETURN_IF_ERROR(ended);
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaGraphInstantiate(&graph.graph_, graph.recorded_, 0), "cudaGraphInstantiate"));
  size_t count = 0;
  ONEPASS_RETURN_IF_ERROR(
      cuda_status(cudaGraphGetRootNodes(graph.recorded_, nullptr, &count), "cudaGraphGetRootNodes"));
  if (count == 1) {
    ONEPASS_RETURN_IF_ERROR(
        cuda_status(cudaGraphGetRootNodes(graph.recorded_, &graph.first_, &count), "cudaGraphGetRootNodes"));
  }
  return graph;
}

CudaGraph::~CudaGraph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  if (recorded_ != nullptr) cudaGraphDestroy(recorded_);
}

Status CudaGraph::launch(const CudaStream& stream) const {
  return cuda_status(cudaGraphLaunch(graph_, stream.get()), "cudaGraphLaunch");
}

}  // namespace onepass
