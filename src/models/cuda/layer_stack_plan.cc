#include <algorithm>
#include <numeric>

#include "models/cuda/layer_stack_kernel.h"
#include "models/cuda/layer_stack_layout.cuh"

namespace onepass {

int stack_box_keys(int page_size) { return std::gcd(page_size, layer_stack::kKeys); }

namespace {

bool is_for_the_kernel(const StackShape& s, const GpuInfo& gpu) {
  // The binary has code for Hopper alone.
  if (gpu.compute_capability != 90) return false;
  if (s.dtype != DType::kBF16 && s.dtype != DType::kF16) return false;
  if (s.head_dim != 64 && s.head_dim != 128) return false;
  const int columns[] = {s.hidden_size, s.intermediate_size, s.num_heads * s.head_dim};
  for (const int cols : columns) {
    if (cols % layer_stack::kChunk != 0) return false;
  }
  // Pieces of pages that are smaller than this are too many.
  constexpr int kFewestBoxKeys = 16;
  if (stack_box_keys(s.page_size) < kFewestBoxKeys) return false;
  return s.num_layers > 0 && s.num_heads % s.num_kv_heads == 0 &&
         s.num_heads / s.num_kv_heads <= layer_stack::kMatrixRows;
}

}  // namespace

StackPlan plan_stack(const StackShape& shape, const GpuInfo& gpu) {
  using namespace layer_stack;
  if (!is_for_the_kernel(shape, gpu)) return {};
  // The ring is what makes the kernel fast: 4 slots at least, and as many as fit.
  constexpr int kFewestSlots = 4;
  // Every block has a tile of gate and up: that it has seen and cleaned what it should follows from its outputs.
  int blocks = gpu.multiprocessors;
  while (blocks > 0 && Products(shape, blocks).of[kGateUp].tiles_of(blocks - 1) == 0) --blocks;
  if (blocks < shape.num_kv_heads) return {};
  for (int rows = kMostRows; rows >= 1; rows /= 2) {
    // Each lane of the warps that share a row has four pieces of 8 columns at most; a norm's weights fit into a slot.
    if (int64_t{rows} * shape.hidden_size > kWarps * 32 * 8 * 4 || norm_unit_bytes(shape) > kSlotBytes) continue;
    const int64_t fixed = SharedLayout(shape, rows, blocks, 0).bytes;
    const int64_t slots = (gpu.shared_memory_bytes - fixed) / (kSlotBytes + 2 * 8);
    if (slots < kFewestSlots) continue;
    StackPlan plan;
    plan.max_rows = rows;
    plan.blocks = blocks;
    plan.ring_slots = static_cast<int>(slots);
    plan.set_bytes = ExchangeSet(shape, rows, blocks).bytes;
    plan.exchange_bytes = kStateBytes + kSets * plan.set_bytes;
    return plan;
  }
  return {};
}

}  // namespace onepass
