// How the GRU's sequences are cut into blocks that run through time together, and the blocks into parts. All of it
// depends on the batch alone, never on the number of threads: so do the results' bits. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/kernels/gru.h"

namespace cmi_fast {

struct GruBlocks {
  std::vector<int64_t> order;        // the sequences from the longest to the shortest
  std::vector<int64_t> first_saved;  // of each block: the items of those before it
  int64_t block;                     // sequences of each, but the last

  explicit GruBlocks(const Sequences& sequences) : order(sequences.batch) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return sequences.length(a) > sequences.length(b); });
    // Few sequences make blocks of few, so that there is work for several threads.
    constexpr int64_t BLOCKS = 32;
    const int64_t share = (sequences.batch / BLOCKS + GRU_BLOCK_STEP - 1) / GRU_BLOCK_STEP * GRU_BLOCK_STEP;
    block = std::clamp(share, GRU_BLOCK_STEP, GRU_BLOCK_MAX);
    for (int64_t i = 0, items = 0; i < sequences.batch; ++i) {
      if (i % block == 0) first_saved.push_back(items);
      items += sequences.length(order[i]);
    }
  }

  int64_t count() const { return std::max<int64_t>(first_saved.size(), 1); }

  // Part i is order[boundary(i)] .. order[boundary(i + 1)]: the longest sequences come first, so that threads end
  // together.
  int64_t boundary(int64_t part, int64_t parts) const {
    return std::min<int64_t>(order.size(), part * count() / parts * block);
  }

  // Each part has a sum of the parameters' gradients, of so many bytes: as many parts as there is memory for.
  int64_t gradient_parts(int64_t bytes) const {
    constexpr int64_t MIN_PARTS = 4, MAX_PARTS = 64, MEMORY = 64 << 20;
    return std::min(count(), std::clamp(MEMORY / bytes, MIN_PARTS, MAX_PARTS));
  }
};

}  // namespace cmi_fast
