#include "attention/reference/ladder.h"

#include <chrono>
#include <cmath>
#include <random>

#include "attention/reference/naive.h"
#include "attention/reference/one_pass.h"
#include "attention/reference/online_softmax.h"
#include "attention/reference/safe_softmax.h"
#include "base/check.h"

namespace onepass::ladder {
namespace {

// Q, K, V: exactly representable in the dtype, so that every arithmetic is given the same numbers.
struct Inputs {
  std::vector<double> q, k, v;
};

std::vector<double> draw(std::mt19937_64& rng, const Config& config, double deviation) {
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<double> values(config.shape.n * config.shape.d);
  for (double& value : values) {
    const float rounded = static_cast<float>(normal(rng));
    value = config.dtype == DType::kF16 ? to_float(to_float16(rounded)) : rounded;
  }
  return values;
}

// q.k of two rows of unit normals has deviation sqrt(d), which the scale divides out again.
Inputs draw_inputs(const Config& config) {
  std::mt19937_64 rng(config.seed);
  Inputs inputs;
  inputs.q = draw(rng, config, config.score_deviation);
  inputs.k = draw(rng, config, 1.0);
  inputs.v = draw(rng, config, 1.0);
  return inputs;
}

template <typename T>
void fill(Matrix<T>& matrix, const std::vector<double>& values) {
  std::ranges::transform(values, matrix.elements().begin(), [](double value) { return T(value); });
}

template <typename T>
Head<T> make_head(const Config& config, const Inputs& inputs, Meter& meter) {
  Head<T> head(config.shape, T(1.0 / std::sqrt(static_cast<double>(config.shape.d))), meter);
  fill(head.q, inputs.q);
  fill(head.k, inputs.k);
  fill(head.v, inputs.v);
  return head;
}

double largest_score(Head<double>& head) {
  double largest = negative_infinity<double>();
  for (int64_t i = 0; i < head.shape.n; ++i) {
    for (int64_t j : head.shape.visible(i, {0, head.shape.n})) {
      largest = std::max(largest, head.scale * dot<double>(head.q.load_row(i), head.k.load_row(j)));
    }
  }
  return largest;
}

template <typename T>
RungReport measure(Rung rung, const Config& config, const Inputs& inputs, std::span<const double> exact) {
  RungReport report{.rung = rung, .cost = {}};
  Head<T> head = make_head<T>(config, inputs, report.cost);
  const auto start = std::chrono::steady_clock::now();
  run(rung, head);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const std::span<T> out = head.out.elements();
  for (int64_t i = 0; i < config.shape.n; ++i) {
    double error = 0.0;
    bool finite = true;
    bool lost = true;  // all zero, and ought not to be
    for (int64_t at = i * config.shape.d; at < (i + 1) * config.shape.d; ++at) {
      const double value = static_cast<double>(out[at]);
      finite = finite && std::isfinite(value);
      lost = lost && value == 0.0 && exact[at] != 0.0;
      error = std::max(error, std::abs(value - exact[at]));
    }
    if (finite) report.max_error = std::max(report.max_error, error);
    report.nan_rows += !finite;
    report.zero_rows += finite && lost;
  }
  return report;
}

}  // namespace

std::string_view to_string(Rung rung) {
  switch (rung) {
    case Rung::kNaive:
      return "naive";
    case Rung::kSafeSoftmax:
      return "safe softmax";
    case Rung::kOnlineSoftmax:
      return "online softmax";
    case Rung::kOnePass:
      return "one pass";
  }
  check_failed(__FILE__, __LINE__, "unknown rung");
}

int passes_over_scores(Rung rung) {
  switch (rung) {
    case Rung::kNaive:
    case Rung::kOnlineSoftmax:
      return 2;
    case Rung::kSafeSoftmax:
      return 3;
    case Rung::kOnePass:
      return 1;
  }
  check_failed(__FILE__, __LINE__, "unknown rung");
}

template <typename T>
void run(Rung rung, Head<T>& head) {
  switch (rung) {
    case Rung::kNaive:
      return naive(head);
    case Rung::kSafeSoftmax:
      return safe_softmax(head);
    case Rung::kOnlineSoftmax:
      return online_softmax(head);
    case Rung::kOnePass:
      return one_pass(head);
  }
}
template void run(Rung, Head<double>&);
template void run(Rung, Head<float>&);
template void run(Rung, Head<Half>&);

Meter predicted_cost(Rung rung, const Shape& shape, int64_t element_bytes) {
  const int64_t n = shape.n;
  const int64_t row_tiles = (n + shape.row_tile - 1) / shape.row_tile;
  // Scores that are visible, and rows of K that are loaded when every tile of queries loads those that it sees.
  const int64_t scores = shape.causal ? n * (n + 1) / 2 : n * n;
  const int64_t key_rows = shape.causal ? shape.row_tile * row_tiles * (row_tiles - 1) / 2 + n : row_tiles * n;
  // Every rung reads Q once, K and V once a tile of queries, and writes the output once.
  const int64_t inputs = n * shape.d + 2 * key_rows * shape.d;
  const int64_t output = n * shape.d;
  // Every rung holds a tile of each of Q, K, V and the output.
  const int64_t tiles_held = 2 * (shape.row_tile + shape.key_tile) * shape.d;

  Meter elements;
  switch (rung) {
    case Rung::kNaive:  // S and l
      elements = {inputs + scores + n, output + scores + n, tiles_held + n * n + n + shape.row_tile};
      break;
    case Rung::kSafeSoftmax:  // S, m and l; m is read twice
      elements = {inputs + 2 * scores + 3 * n, output + scores + 2 * n,
                  tiles_held + n * n + 2 * n + 2 * shape.row_tile};
      break;
    case Rung::kOnlineSoftmax:  // S, m and l
      elements = {inputs + scores + 2 * n, output + scores + 2 * n, tiles_held + n * n + 2 * n + 2 * shape.row_tile};
      break;
    case Rung::kOnePass:  // on chip: m, l, and the scores of one query and one tile of keys
      elements = {inputs, output, tiles_held + 2 * shape.row_tile + shape.key_tile};
      break;
  }
  return {elements.bytes_read * element_bytes, elements.bytes_written * element_bytes,
          elements.bytes_held * element_bytes};
}

Report run_ladder(const Config& config, const std::function<void(Rung)>& on_start) {
  ONEPASS_CHECK(config.dtype == DType::kF32 || config.dtype == DType::kF16);
  const Inputs inputs = draw_inputs(config);
  Meter not_reported;
  Head<double> exact = make_head<double>(config, inputs, not_reported);
  run(Rung::kOnePass, exact);

  Report report{.largest_score = largest_score(exact), .rungs = {}};
  for (Rung rung : kRungs) {
    if (on_start) on_start(rung);
    report.rungs.push_back(config.dtype == DType::kF16 ? measure<Half>(rung, config, inputs, exact.out.elements())
                                                       : measure<float>(rung, config, inputs, exact.out.elements()));
  }
  return report;
}

double memory_needed(const Config& config) {
  const double n = static_cast<double>(config.shape.n);
  const double d = static_cast<double>(config.shape.d);
  const double tiles = 2.0 * static_cast<double>(config.shape.row_tile + config.shape.key_tile) * d;
  // The scores; Q, K, V as drawn, as doubles and in the dtype, with both outputs; the tiles, at most in double.
  return sizeof(float) * (n * n + 2 * n) + n * d * (7 * sizeof(double) + 4 * sizeof(float)) + tiles * sizeof(double);
}

}  // namespace onepass::ladder
