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

StatusOr<CudaEvent> CudaEvent::create() {
  CudaEvent event;
  ONEPASS_RETURN_IF_ERROR(cuda_status(cudaEventCreate(&event.event_), "cudaEventCreate"));
  return event;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

Status CudaEvent::record(const CudaStream& stream) {
  return cuda_status(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
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
  cudaGraph_t recorded = nullptr;
  const Status ended = cuda_status(cudaStreamEndCapture(stream.get(), &recorded), "cudaStreamEndCapture");
  CudaGraph graph;
  Status status = queued.ok() ? ended : queued;
  if (status.ok()) status = cuda_status(cudaGraphInstantiate(&graph.graph_, recorded, 0), "cudaGraphInstantiate");
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  if (!status.ok()) return status;
  return graph;
}

CudaGraph::~CudaGraph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

Status CudaGraph::launch(const CudaStream& stream) const {
  return cuda_status(cudaGraphLaunch(graph_, stream.get()), "cudaGraphLaunch");
}

}  // namespace onepass
