// The ladder from the formula of attention to FlashAttention: four algorithms on one head, run and measured side by
// side. Each is a small file to be read beside the next: naive.h, safe_softmax.h, online_softmax.h, one_pass.h.
// docs/attention.md walks along them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "attention/reference/ladder_head.h"
#include "attention/reference/ladder_memory.h"
#include "tensor/dtype.h"

namespace onepass::ladder {

enum class Rung { kNaive, kSafeSoftmax, kOnlineSoftmax, kOnePass };

inline constexpr std::array kRungs = {Rung::kNaive, Rung::kSafeSoftmax, Rung::kOnlineSoftmax, Rung::kOnePass};

// "naive", "safe softmax", "online softmax", "one pass".
std::string_view to_string(Rung rung);

// How many times the algorithm visits each of the n x n scores.
int passes_over_scores(Rung rung);

// Computes head.out, counting on head.meter.
template <typename T>
void run(Rung rung, Head<T>& head);
extern template void run(Rung, Head<double>&);
extern template void run(Rung, Head<float>&);
extern template void run(Rung, Head<Half>&);

// What run() counts, in closed form: so that the cost of lengths too long to run can be told. Formulas in ladder.cc and
// docs/attention.md.
Meter predicted_cost(Rung rung, const Shape& shape, int64_t element_bytes);

struct Config {
  Shape shape;
  DType dtype = DType::kF32;  // of the inputs and of all arithmetic: kF32 or kF16
  uint64_t seed = 0;
  double score_deviation = 4.0;  // standard deviation of the scores; 2 to 5 is what trained models show
};

struct RungReport {
  Rung rung;
  Meter cost;
  double seconds = 0.0;    // of this scalar code on one thread, counting included
  double max_error = 0.0;  // largest |out - exact| over the rows that are finite; exact is computed in float64
  int64_t nan_rows = 0;    // output rows with a NaN or an infinity in them
  int64_t zero_rows = 0;   // finite rows that are all zero where the exact one is not: their sum overflowed
};

struct Report {
  double largest_score = 0.0;
  std::vector<RungReport> rungs;  // in the order of kRungs
};

// Draws Q, K and V from normal distributions, rounds them to the dtype and runs every rung on them; `on_start` is told
// of each first. REQUIRES: the sizes are at least 1.
Report run_ladder(const Config& config, const std::function<void(Rung)>& on_start = {});

// Bytes of memory that run_ladder takes at its peak (an fp16 number takes 4 here, see Half).
double memory_needed(const Config& config);

}  // namespace onepass::ladder
