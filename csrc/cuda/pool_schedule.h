// Which warp takes which sequences, and which of their items.
#pragma once

#include <cstdint>

#include "cuda/machine.h"

namespace cmi_fast::cuda {

constexpr int ITEMS = 8;               // of a tile, which a warp computes at once
constexpr int WINDOW = LANES;          // items whose ids and views a warp reads at once, one a lane
constexpr int TILES = WINDOW / ITEMS;  // of a window

// Positions [begin, end).
struct Span {
  int begin, end;
};

// What a warp takes of a sequence: every `stride`-th window from the one numbered `first` on.
struct Walk {
  Span items;
  int first, stride;

  CMI_FAST_HOST_DEVICE int windows() const {
    const int all = (items.end - items.begin) / WINDOW + ((items.end - items.begin) % WINDOW > 0);
    return all > first ? (all - first - 1) / stride + 1 : 0;
  }
  CMI_FAST_HOST_DEVICE int start(int window) const { return items.begin + (first + window * stride) * WINDOW; }
  // All windows but the sequence's last one have TILES.
  CMI_FAST_HOST_DEVICE int tiles() const {
    if (windows() == 0) return 0;
    const int rest = items.end - start(windows() - 1);
    return (windows() - 1) * TILES + (rest < WINDOW ? (rest + ITEMS - 1) / ITEMS : TILES);
  }
  CMI_FAST_HOST_DEVICE int position(int tile, int item) const {
    return start(tile / TILES) + tile % TILES * ITEMS + item;
  }
};

// A warp takes a whole sequence, one tile after the other, so that nothing is added up across warps. Only where
// sequences are long on average, and one warp's walk would take long, do a block's four warps take every fourth window,
// and their sums are added in the warps' order. Both follow from the shapes alone: lengths are not waited for, and the
// same shapes give the same bits. One long sequence among many short ones is still a single warp's.
struct PoolSchedule {
  static constexpr int LONG = 4 * WINDOW;
  // As many blocks as the largest GPUs run at once: in a backward pass each leaves a sum of the categories' gradients.
  static constexpr int MOST_BLOCKS = 384;
  int batch, warps;  // sequences; warps of a sequence

  CMI_FAST_HOST_DEVICE static PoolSchedule of(int batch, int64_t positions) {
    return {batch, batch > 0 && positions / batch >= LONG ? WARPS : 1};
  }

  CMI_FAST_HOST_DEVICE int sequences_of_a_block() const { return WARPS / warps; }
  CMI_FAST_HOST_DEVICE int blocks() const { return (batch - 1) / sequences_of_a_block() + (batch > 0); }
  // At least one: without sequences its sum is zero.
  CMI_FAST_HOST_DEVICE int backward_blocks() const {
    const int most = blocks() < MOST_BLOCKS ? blocks() : MOST_BLOCKS;
    return most > 0 ? most : 1;
  }

  // The sequence of a warp; from `batch` on there is none.
  CMI_FAST_HOST_DEVICE int64_t sequence(int64_t block, int warp) const {
    return block * sequences_of_a_block() + warp / warps;
  }
  CMI_FAST_HOST_DEVICE Walk walk(Span items, int warp) const { return {items, warp % warps, warps}; }
};

}  // namespace cmi_fast::cuda
