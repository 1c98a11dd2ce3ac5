// The interface between the operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include "cpu/kernels/element.h"

namespace cmi_fast {

struct ScoredItem {
  double score;
  int64_t item;
};

// The k items of largest score for each user. An item's score is its largest product with one of the user's m
// interests; of equal scores the smaller item comes first.
struct TopK {
  ConstRows interests, items;  // [users, m, d], [count, d]
  int64_t users, m, count, d, k;
  const int64_t *exclude_offsets, *exclude_ids;  // the user's are ids[offsets[u]] up to ids[offsets[u + 1]], rising
  ScoredItem* lists;                             // [users, k]: each a heap, the worst item in front
  // The order in which items are looked at: place i holds item i * stride % count, and the stride meets every item. In
  // the order of the rows every item might be better than all before it.
  int64_t stride;
};

// Items are screened a tile at a time at low precision: an upper bound of its score keeps an item out, or the score is
// computed. Sizes are in bytes.
struct TopKKernel {
  int64_t tile;  // items
  int64_t (*tile_size)(int64_t d);
  int64_t (*workspace_size)(int64_t users, int64_t m, int64_t d);  // of either function for so many users
  // What screening reads of the items at the places of tile `index`. False: a value is not finite.
  bool (*pack)(const TopK& problem, int64_t index, void* packed, void* workspace);
  // Puts the items of `tiles` packed tiles, the first of them tile `first`, into the lists of users begin .. end.
  // False: an interest is not finite.
  bool (*search)(const TopK& problem, int64_t begin, int64_t end, int64_t first, int64_t tiles, const void* packed,
                 void* workspace);
};

struct TopKKernels {
  TopKKernel float32;
  TopKKernel int8;  // {} at a level without AVX-512; runs where the CPU has VNNI besides
};

constexpr int64_t INT8_LARGEST_D = 32768;  // beyond it sums may not fit 32 bits

}  // namespace cmi_fast
