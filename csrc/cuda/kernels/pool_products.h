// The small products of a tile of items: with rows over the dimensions, and with weights over the items.
#pragma once

#include "cuda/kernels/pool_items.h"

namespace cmi_fast::cuda {

constexpr int ROWS = 8;  // that a tile is multiplied with at once

// Adds the halves that two lanes have of N sums: each keeps one half of them.
template <int N>
CMI_FAST_DEVICE void add_halves(const float (&sums)[N], float (&half)[N / 2], bool upper, int mask) {
  CMI_FAST_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    const float other = shuffle_xor(upper ? sums[i] : sums[N / 2 + i], mask);
    half[i] = (upper ? sums[N / 2 + i] : sums[i]) + other;
  }
}

// Products of the tile's eight unit rows with eight others, whose dimensions k to k + 3 are row(r, k): calls
// visit(item, r, product) for the lane's two. Lanes split the dimensions by eight, which reads neighbours, the items
// and the rows by two; so a lane multiplies four items by four rows.
template <class Row, class Visit>
CMI_FAST_DEVICE void multiply_rows(const float* units, int depth, int lane, const Row& row, const Visit& visit) {
  const int first_item = lane / 8 % 2 * 4, first_row = lane / 16 * 4;
  float sums[16] = {};
  for (int k = lane % 8 * 4; k < depth; k += 32) {
    Four<float> unit[4];
    CMI_FAST_UNROLL
    for (int i = 0; i < 4; ++i)
      unit[i] = *reinterpret_cast<const Four<float>*>(units + (first_item + i) * UNIT_STRIDE + k);
    CMI_FAST_UNROLL
    for (int r = 0; r < 4; ++r) {
      const Four<float> other = row(first_row + r, k);
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) CMI_FAST_UNROLL
      for (int j = 0; j < 4; ++j) sums[i * 4 + r] += unit[i].x[j] * other.x[j];
    }
  }
  float eight[8], four[4], two[2];
  add_halves(sums, eight, lane & 1, 1);
  add_halves(eight, four, lane & 2, 2);
  add_halves(four, two, lane & 4, 4);
  const int item = first_item + (lane & 1 ? 2 : 0) + (lane & 2 ? 1 : 0), r = first_row + (lane & 4 ? 2 : 0);
  visit(item, r, two[0]);
  visit(item, r + 1, two[1]);
}

// scores [m, ITEMS] = or += one chunk's products of the unit rows with the unit categories.
template <class S, class C>
CMI_FAST_DEVICE void add_scores(const PoolInputs<S, C>& x, int chunk, bool first, WarpMemory<S>& memory, int lane) {
  const int64_t width = int64_t(x.chunks()) * DEPTH;
  for (int k = 0; k < x.m; k += ROWS) {
    const auto category = [&](int r, int dimension) {
      const int64_t row = k + r < x.m ? k + r : x.m - 1;
      return *reinterpret_cast<const Four<float>*>(x.categories + row * width + chunk * DEPTH + dimension);
    };
    multiply_rows(memory.units, x.depth(chunk), lane, category, [&](int item, int r, float product) {
      if (k + r >= x.m) return;
      float& score = memory.scores[(k + r) * ITEMS + item];
      score = first ? product : score + product;
    });
  }
}

// A lane's part of the sums [N, DEPTH]: the dimensions `lane` and `lane` + 32.
constexpr int COLUMNS = DEPTH / LANES;
template <int N>
using SliceSums = float[N][COLUMNS];

// sums += weights [rows, ITEMS] units [ITEMS, DEPTH]; rows up to the next multiple of 4 are there.
template <int N>
CMI_FAST_DEVICE void add_weighted_units(SliceSums<N>& sums, const float* weights, int rows, const float* units,
                                        int lane) {
  float unit[ITEMS][COLUMNS];
  CMI_FAST_UNROLL
  for (int item = 0; item < ITEMS; ++item) CMI_FAST_UNROLL
  for (int column = 0; column < COLUMNS; ++column)
    unit[item][column] = units[item * UNIT_STRIDE + column * LANES + lane];
  CMI_FAST_UNROLL
  for (int row = 0; row < N; ++row) {
    if (row % 4 == 0 && row >= rows) break;
    CMI_FAST_UNROLL
    for (int item = 0; item < ITEMS; item += 4) {
      const Four<float> weight = *reinterpret_cast<const Four<float>*>(weights + row * ITEMS + item);
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) CMI_FAST_UNROLL
      for (int column = 0; column < COLUMNS; ++column) sums[row][column] += weight.x[i] * unit[item + i][column];
    }
  }
}

template <int N>
constexpr int SLICE_BYTES = WARPS * N * DEPTH * int(sizeof(float));

// Adds up the sums of each `warps` neighbouring warps of a block, in their order, and calls visit(row, dimension, sum)
// in one of them.
template <int N, class Visit>
CMI_FAST_DEVICE void sum_over_warps(const SliceSums<N>& sums, int rows, int depth, int warps, char* shared, Place place,
                                    const Visit& visit) {
  float* const of_warps = reinterpret_cast<float*>(shared);  // [WARPS, N, DEPTH]
  sync_threads();
  CMI_FAST_UNROLL
  for (int row = 0; row < N; ++row) CMI_FAST_UNROLL
  for (int column = 0; column < COLUMNS; ++column)
    of_warps[(place.warp() * N + row) * DEPTH + column * LANES + place.lane()] = sums[row][column];
  sync_threads();
  const int member = place.warp() % warps, first = place.warp() - member;
  for (int row = member; row < rows; row += warps) {
    for (int k = place.lane(); k < depth; k += LANES) {
      float sum = 0;
      for (int warp = first; warp < first + warps; ++warp) sum += of_warps[(warp * N + row) * DEPTH + k];
      visit(row, k, sum);
    }
  }
}

}  // namespace cmi_fast::cuda
