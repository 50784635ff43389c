// The decode kernel: a thread block's way from the plan to the results of its items.
#pragma once

#include "attention/cuda/hopper_decode_warp.cuh"

namespace onepass::hopper_decode {

// What a thread block does, by the plan that `first` was read from.
template <typename R, int kColumnTiles, bool kBf16>
__device__ __forceinline__ void work(const RunArgs& args, const Place& place, const FirstItem& first,
                                     uint8_t* shared_bytes) {
  using State = WarpState<R, kColumnTiles, kBf16>;
  constexpr bool kBoxes = R::kBoxes;
  auto& shared = *reinterpret_cast<typename State::Shared*>(shared_bytes);
  const uint32_t full = shared_address(shared.full[R::team()]);
  const int row_begin = threadIdx.x / 32 % R::kTeamWarps * kColumnTiles * 8;  // of this warp

  // The plan and the page table are read before the kernels that may write them are known to be over. What they say is
  // checked, so that nothing outside the arrays is touched, and at first taken as true: their round trips to memory are
  // over when this kernel may begin. Then they are read again and, if they have changed, so are the first chunks.
  // What is to be done between the wait and the first copies is worked out before.
  Opening<R> opening(first);
  if (args.total_kv_rows > 0) opening.look_up_pages(args, place, /*hinted=*/true);
  if (opening.sound) opening.prefetch_keys(args, place);  // before all else: it has the longest way
  if (opening.sound) opening.prefetch_q(args, place);
  if (kBoxes) R::init_my_barriers(full, /*again=*/false);
  Loader<R> loader(args, place, opening);
  State state;
  const auto begin = [&] {
    state.find_q(args, opening.item, opening.item.head_kv + place.head, row_begin);
    state.begin(args, opening.item, row_begin);
    loader.restart();
  };
  if (args.total_kv_rows > 0) begin();
  if (opening.sound) loader.prepare();
  const uint32_t ring = shared_address(shared.ring[R::team()]);
  const bool expects = kBoxes && opening.sound && loader.expect_prepared(full);
  SecondReading<R> second(place, opening);
  wait_for_earlier_kernels();
  bool up_to_date = !opening.sound;
  if (up_to_date) {
    opening.template read<R::kTeamWarps>(place);
    opening.look_up_pages(args, place, /*hinted=*/false);
    begin();
  } else {
    second.read(opening);
  }
  const auto load_q = [&] {
    if (opening.item.block_begin * R::kChunksOfBlock + R::team() < opening.item.block_end * R::kChunksOfBlock) {
      state.load_q(args);
    }
  };
  load_q();
  if (expects) loader.copy_prepared(ring, full);

#pragma unroll 1
  for (int i = expects ? R::kUnitsOfChunk : 0; i < R::kUnits || !up_to_date;) {
    if (!up_to_date && (i == R::kUnits || (i % R::kUnitsOfChunk == 0 && !loader.opening_has_next()))) {
      up_to_date = true;
      if (second.same_as(opening)) continue;
      if constexpr (kBoxes) {
        for (int unit = 0; unit < i; ++unit) hopper::barrier_wait(R::my_barrier(full, unit), 0);
        R::init_my_barriers(full, /*again=*/true);
      } else {
        wait_for_copies<0>();
      }
      opening.template read<R::kTeamWarps>(place);
      opening.look_up_pages(args, place, /*hinted=*/false);
      begin();
      load_q();
      i = 0;
      continue;
    }
    if (!loader.issue(i % R::kUnitsOfChunk, ring + i * R::kUnitBytes, R::my_barrier(full, i)) && kBoxes) break;
    ++i;
  }
  if (kBoxes && R::kTeamWarps > 1) R::sync_team();  // no barrier is made new any more
  const int num_items = opening.num_items;

  int slot = 0;  // the oldest unit of the ring
  uint32_t phase = 0;
  for (int i = 0; i < num_items; ++i) {
    const Item item = i == 0 ? place.for_head(args, opening.item) : place.load_item(args, opening.next_item, i);
    if (i > 0) {
      state.find_q(args, item, item.head_kv, row_begin);
      state.load_q(args);
      state.begin(args, item, row_begin);
    }
    for (int chunk = item.block_begin * R::kChunksOfBlock + R::team(); chunk < item.block_end * R::kChunksOfBlock;
         chunk += R::kTeams) {
      const int first_key = chunk * R::kChunkKeys;
      const bool active = first_key < item.some_hi && first_key + R::kChunkKeys > item.some_lo;
      const bool masked = first_key < item.all_lo || first_key + R::kChunkKeys > item.all_hi;
      float scores[2][kColumnTiles][4] = {};
      uint32_t weights[R::kChunkTiles][kColumnTiles][2];
      // K and V in one loop's body: code that is short stays in the instruction cache.
#pragma unroll(R::kUnitsOfRow == 1 ? 1 : R::kUnitsOfChunk)
      for (int part = 0; part < R::kUnitsOfChunk; ++part) {
        const uint32_t unit = ring + slot * R::kUnitBytes;
        if constexpr (kBoxes) {
          R::wait_for_unit(full, slot, phase);
        } else {
          wait_for_copies<R::kUnits - 1>();
          R::sync_team();
        }
        if (active && part < R::kUnitsOfRow) state.multiply_k(R::kUnitsOfRow == 1 ? 0 : part, unit, scores);
        if (active && part >= R::kUnitsOfRow) {
          if (kBoxes) zero_unseen<R>(item, first_key, unit);
          state.multiply_v(R::kUnitsOfRow == 1 ? 0 : part - R::kUnitsOfRow, unit, weights);
        }
        R::sync_team();
        loader.issue((part + R::kUnits) % R::kUnitsOfChunk, unit, R::my_barrier(full, slot));
        if (++slot == R::kUnits) {
          slot = 0;
          phase ^= 1;
        }
        if (active && part == R::kUnitsOfRow - 1) state.weigh(args, first_key, masked, scores, weights);
      }
    }
    state.finish(args, item, shared);
  }

  // The merge waits only for blocks of lower numbers, which have begun before this one.
  for (int i = 0; i < num_items; ++i) {
    const Item item = i == 0 ? place.for_head(args, opening.item) : place.load_item(args, opening.next_item, i);
    if (item.parts > 1 && item.part == item.parts - 1 && (item.merge_heads == 1 || place.head % 2 == 1)) {
      if (has_few_parts<R::kQueryDim>(args, item)) {
        merge_few_parts<R::kQueryDim, kBf16>(args, item);
      } else {
        merge_parts<R::kQueryDim, kBf16>(args, item, shared.ring[0]);
      }
    }
  }
}

// `Short` is for workers with few keys.
template <typename R, typename Short, int kColumnTiles, bool kBf16>
__global__ void __launch_bounds__(kWarps * 32, 1) decode_kernel(const __grid_constant__ RunArgs args) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  constexpr bool kHasShort = !std::is_same_v<R, Short>;
  // The copy engine fetches a tensor map from memory, too. Which of them it will be is not known yet.
  if (R::kBoxes && threadIdx.x == 0) {
    const auto prefetch = [](const BoxMaps& maps) {
      hopper::prefetch_tensor_map(&maps.k);
      hopper::prefetch_tensor_map(&maps.v);
    };
    prefetch(args.boxes);
    prefetch(args.near_boxes);
    if (kHasShort && args.has_short_boxes) prefetch(args.short_boxes);
  }
  const Place place(args);
  FirstItem first = {};
  if (args.total_kv_rows > 0) {
    first.read<R::kTeamWarps>(place);
  }
  // A block without work is gone as soon as it knows: until then the next launch does not begin.
  if (first.num_items <= 0 && args.total_kv_rows > 0) {
    wait_for_earlier_kernels();
    if (load_relaxed(&place.worker->num_items) <= 0) return;
  }
  if (kHasShort && args.has_short_boxes && first.blocks > kTooFewBlocks && first.blocks <= kShortBlocks) {
    work<Short, kColumnTiles, kBf16>(args, place, first, shared_bytes);
  } else {
    work<R, kColumnTiles, kBf16>(args, place, first, shared_bytes);
  }
}

}  // namespace onepass::hopper_decode
