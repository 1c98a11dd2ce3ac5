// Which block of threads takes which tiles of the triangle of scores.
#pragma once

#include <cstdint>

#include "cuda/machine.h"

namespace cmi_fast::cuda {

// Rows are cut into `parts` of whole tiles, and a block takes all tiles between the rows of two of them: it alone adds
// to its two rows of partial sums [parts, n], in its own order. So the sums have the same bits in every run, and take
// memory of the size of the rows.
struct TriangleSchedule {
  static constexpr int64_t MOST_PARTS = 64;
  int tiles, tiles_a_part, parts;

  CMI_FAST_HOST_DEVICE static TriangleSchedule of(int64_t rows, int tile) {
    const int64_t tiles = (rows + tile - 1) / tile, tiles_a_part = (tiles + MOST_PARTS - 1) / MOST_PARTS;
    return {int(tiles), int(tiles_a_part), int((tiles + tiles_a_part - 1) / tiles_a_part)};
  }

  // Blocks for all pairs a <= b of parts; the parts q and parts - 1 - q share parts + 1 of them.
  CMI_FAST_HOST_DEVICE int triangle_blocks() const { return (parts + 1) / 2 * (parts + 1); }

  // The pair of a block; false where there is none, which is for part of the middle row where `parts` is odd.
  CMI_FAST_HOST_DEVICE bool pair(int block, int* a, int* b) const {
    const int row = block / (parts + 1), place = block % (parts + 1), mirrored = parts - 1 - row;
    const bool first = place < parts - row;
    *a = first ? row : mirrored;
    *b = first ? row + place : place - 1;
    return first || row != mirrored;
  }

  // Tiles [first, last) of a part.
  CMI_FAST_HOST_DEVICE int first_tile(int part) const { return part * tiles_a_part; }
  CMI_FAST_HOST_DEVICE int last_tile(int part) const {
    const int last = (part + 1) * tiles_a_part;
    return last < tiles ? last : tiles;
  }
};

}  // namespace cmi_fast::cuda
