// How the work of blocks that would be too few is cut.
#pragma once

#include "cuda/machine.h"

namespace cmi_fast::cuda {

// A block keeps one of `kept` tiles and passes over those of a part of the `moving` ones; what the parts find is added
// in their order. Shapes alone decide, so that bits repeat.
struct Parts {
  static constexpr int BLOCKS = 512;  // about four of an SM of the largest GPUs
  int moving, tiles_a_part, count;

  CMI_FAST_HOST_DEVICE static Parts of(int kept, int moving) {
    const int wanted = kept < BLOCKS ? BLOCKS / kept : 1, most = wanted < moving ? wanted : moving;
    const int tiles_a_part = (moving + most - 1) / most;
    return {moving, tiles_a_part, (moving + tiles_a_part - 1) / tiles_a_part};
  }

  // Tiles [first, last) of a part.
  CMI_FAST_HOST_DEVICE int first(int part) const { return part * tiles_a_part; }
  CMI_FAST_HOST_DEVICE int last(int part) const {
    const int last = (part + 1) * tiles_a_part;
    return last < moving ? last : moving;
  }
};

}  // namespace cmi_fast::cuda
