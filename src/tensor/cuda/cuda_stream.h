// Owned streams, events and graphs of the CUDA runtime. All move and do not copy.
#pragma once

#include <utility>

#include "absl/functional/function_ref.h"
#include "base/status.h"

struct CUstream_st;     // cudaStream_t points to it
struct CUevent_st;      // cudaEvent_t
struct CUgraph_st;      // cudaGraph_t
struct CUgraphExec_st;  // cudaGraphExec_t
struct CUgraphNode_st;  // cudaGraphNode_t

namespace onepass {

class CudaEvent;

// A queue of work for the current GPU. Does not wait for the default stream.
class CudaStream {
 public:
  CudaStream() = default;  // the default stream
  static StatusOr<CudaStream> create();
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~CudaStream();

  // Waits until all queued work is done; its errors show here.
  Status synchronize() const;
  CUstream_st* get() const { return stream_; }

  // What is queued from now on begins after `event`, which has been recorded.
  Status wait(const CudaEvent& event) const { return wait(stream_, event); }
  static Status wait(CUstream_st* stream, const CudaEvent& event);

 private:
  CUstream_st* stream_ = nullptr;
};

// A point in a stream's work, with the time at which it was reached.
class CudaEvent {
 public:
  CudaEvent() = default;  // none
  static StatusOr<CudaEvent> create();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();

  Status record(const CudaStream& stream) { return record(stream.get()); }
  Status record(CUstream_st* stream);
  // From `start` to this event, about 0.5 us exact. Waits for both.
  StatusOr<double> seconds_since(const CudaEvent& start) const;
  // Waits until it is reached; errors of the work before it show here.
  Status synchronize() const;

  CUevent_st* get() const { return event_; }

 private:
  CUevent_st* event_ = nullptr;
};

// Work that is queued as a whole.
class CudaGraph {
 public:
  // What `queue` puts on `stream`, which is not run.
  static StatusOr<CudaGraph> capture(const CudaStream& stream, absl::FunctionRef<Status()> queue);
  CudaGraph(CudaGraph&& other) noexcept
      : recorded_(std::exchange(other.recorded_, nullptr)),
        graph_(std::exchange(other.graph_, nullptr)),
        first_(std::exchange(other.first_, nullptr)) {}
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    std::swap(recorded_, other.recorded_);
    std::swap(graph_, other.graph_);
    std::swap(first_, other.first_);
    return *this;
  }
  ~CudaGraph();

  Status launch(const CudaStream& stream) const;

  CUgraphExec_st* get() const { return graph_; }
  // What was queued first, where all the rest comes after it: its parameters may change between launches. Null
  // otherwise.
  CUgraphNode_st* first() const { return first_; }

 private:
  CudaGraph() = default;
  CUgraph_st* recorded_ = nullptr;  // its nodes name those of graph_
  CUgraphExec_st* graph_ = nullptr;
  CUgraphNode_st* first_ = nullptr;
};

}  // namespace onepass
