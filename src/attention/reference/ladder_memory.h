// The machine that the ladder's costs are counted on: a large memory behind a small one, as HBM behind shared memory
// and registers, or DRAM behind a core's cache.
//
// What is counted, exactly:
//  - bytes read and written: every element of a Matrix (the inputs, the output, and what an algorithm keeps in the
//  large
//    memory) each time that it is loaded or stored. No cache is assumed in between; what has been loaded into a Tile is
//    on chip and free from then on.
//  - bytes held: every intermediate that an algorithm asks for, Matrix or Tile; the inputs and the output are not
//    intermediates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/reference/ladder_arithmetic.h"

namespace onepass::ladder {

struct Meter {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t bytes_held = 0;

  bool operator==(const Meter&) const = default;
};

// The indices first .. past-1: for (int64_t i : range).
struct Range {
  int64_t first = 0;
  int64_t past = 0;

  int64_t size() const { return past - first; }

  struct Iterator {
    int64_t index = 0;
    int64_t operator*() const { return index; }
    Iterator& operator++() {
      ++index;
      return *this;
    }
    bool operator==(const Iterator&) const = default;
  };
  Iterator begin() const { return {first}; }
  Iterator end() const { return {std::max(first, past)}; }
};

// [0, count) cut into ranges of `size`; the last one may be shorter.
inline std::vector<Range> tiles(int64_t count, int64_t size) {
  std::vector<Range> ranges;
  for (int64_t first = 0; first < count; first += size) ranges.push_back({first, std::min(first + size, count)});
  return ranges;
}

// A row-major matrix in the large memory. `meter` must outlive it.
template <typename T>
class Matrix {
 public:
  Matrix(Meter& meter, int64_t rows, int64_t columns) : meter_(&meter), columns_(columns), data_(rows * columns) {}

  int64_t columns() const { return columns_; }

  T load(int64_t i, int64_t j) const {
    meter_->bytes_read += kElementBytes<T>;
    return data_[i * columns_ + j];
  }
  void store(int64_t i, int64_t j, T value) {
    meter_->bytes_written += kElementBytes<T>;
    data_[i * columns_ + j] = value;
  }
  std::span<const T> load_row(int64_t i) const {
    meter_->bytes_read += columns_ * kElementBytes<T>;
    return {data_.data() + i * columns_, static_cast<size_t>(columns_)};
  }
  void store_row(int64_t i, std::span<const T> row) {
    meter_->bytes_written += columns_ * kElementBytes<T>;
    std::copy(row.begin(), row.end(), data_.begin() + i * columns_);
  }

  // The elements, for who fills the inputs and inspects the output: not counted.
  std::span<T> elements() { return data_; }

 private:
  Meter* meter_;
  int64_t columns_;
  std::vector<T> data_;
};

// A matrix that is an intermediate result.
template <typename T>
Matrix<T> hold_matrix(Meter& meter, int64_t rows, int64_t columns) {
  meter.bytes_held += rows * columns * kElementBytes<T>;
  return Matrix<T>(meter, rows, columns);
}

// Some rows of a matrix, on chip. They keep the numbers that they have in the matrix: after load(q, {64, 128}), row(64)
// is q's row 64.
template <typename T>
class Tile {
 public:
  Tile(Meter& meter, int64_t rows, int64_t columns) : columns_(columns), data_(rows * columns) {
    meter.bytes_held += rows * columns * kElementBytes<T>;
  }

  // REQUIRES: rows.size() and the matrix's columns are at most the tile's.
  void load(const Matrix<T>& matrix, Range rows) {
    place(rows);
    for (int64_t i : rows) std::ranges::copy(matrix.load_row(i), row(i).begin());
  }
  void store(Matrix<T>& matrix, Range rows) const {
    for (int64_t i : rows) matrix.store_row(i, row(i));
  }
  // Says which rows the tile stands for from now on, whatever it holds.
  void place(Range rows) { first_ = rows.first; }
  void fill(Range rows, T value) {
    place(rows);
    std::fill_n(data_.begin(), rows.size() * columns_, value);
  }

  std::span<T> row(int64_t i) { return {data_.data() + (i - first_) * columns_, static_cast<size_t>(columns_)}; }
  std::span<const T> row(int64_t i) const {
    return {data_.data() + (i - first_) * columns_, static_cast<size_t>(columns_)};
  }

  // Of a tile with one column: the number that belongs to row i.
  T& operator[](int64_t i) { return data_[i - first_]; }

 private:
  int64_t first_ = 0;
  int64_t columns_;
  std::vector<T> data_;
};

}  // namespace onepass::ladder
