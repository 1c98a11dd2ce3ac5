// The kernels of both poolings: of given rows, or of rows gathered by id. The algebra is in docs/kernels.md, the
// schedule in docs/cuda.md.
#pragma once

#include "cuda/kernels/pool_products.h"

namespace cmi_fast::cuda {

// Unit rows [m, width] of the categories [m, d], zero beyond d.
template <class C>
struct UnitCategories : RowKernel {
  const C* categories;
  int m, d;
  int64_t width;
  float* units;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int row = row_of(place), lane = place.lane();
    if (row >= m) return;
    const C* const from = categories + int64_t(row) * d;
    const Scale scale = row_scale(from, d, lane);
    for (int k = lane; k < width; k += LANES)
      units[row * width + k] = k < d ? widen(from[k]) * scale.scale * scale.inverse : 0;
  }
};

// A lane's softmax of its item's scores, with the three other lanes of the item: exponential(k) is e^(score - largest),
// and `total` their sum.
struct Softmax {
  const float* scores;  // [m, ITEMS]
  float sharpness, largest = -INFINITY, total = 0;

  CMI_FAST_DEVICE Softmax(const float* scores_, int m, float t, int lane) : scores(scores_), sharpness(LOG2_E / t) {
    for_each_category(m, lane, [&](int k) { largest = fmaxf(largest, scores[k]); });
    largest = max_over_item(largest);
    for_each_category(m, lane, [&](int k) { total += exponential(k); });
    total = sum_over_item(total);
  }

  CMI_FAST_DEVICE float exponential(int k) const { return fast_exp2((scores[k] - largest) * sharpness); }

  // Calls visit(place in a matrix [m, ITEMS]) for those that are this lane's.
  template <class Visit>
  CMI_FAST_DEVICE static void for_each_category(int m, int lane, const Visit& visit) {
    for (int k = lane; k < m * ITEMS; k += LANES) visit(k);
  }
};

// Where row r of a sequence's matrix of interests [view_count * m, d] lies in the interests [view_count, batch, m, d].
template <class S, class C>
CMI_FAST_DEVICE int64_t interest(const PoolInputs<S, C>& x, int64_t b, int r) {
  return (r / x.m * int64_t(x.batch) + b) * x.m + r % x.m;
}

// The interests of one sequence, as one matrix for all views, of which a block takes a slice of rows and a chunk of
// dimensions: usually that is all of it. Where it is not, each block computes the assignment for itself.
template <class S, class C>
struct PoolForward {
  PoolInputs<S, C> x;
  PoolSchedule schedule;
  C* pooled;
  static constexpr int SHARED = WARPS * int(sizeof(WarpMemory<S>));
  static constexpr int SLICE = 32;  // one, at the usual eight categories and up to four views
  static_assert(SHARED >= SLICE_BYTES<SLICE>);

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    WarpMemory<S>& memory = WarpMemory<S>::of(shared, place);
    const int slice = place.block_y * SLICE, chunk = place.block_z, lane = place.lane();
    const int rows = x.interests() - slice < SLICE ? x.interests() - slice : SLICE;
    const int64_t b = schedule.sequence(place.block_x, place.warp());
    const int view = (slice + lane) / x.m, category = (slice + lane) % x.m;  // of the lane's row of the slice
    const float t = x.t();
    SliceSums<SLICE> sums = {};
    const auto add = [&](const PoolTile&, int at, bool first) { add_scores(x, at, first, memory, lane); };
    const auto pool = [&](const PoolTile& tile) {
      sync_warp();
      const Softmax softmax(memory.scores, x.m, t, lane);
      const float inverse = 1 / softmax.total;
      Softmax::for_each_category(x.m, lane, [&](int k) { memory.scores[k] = softmax.exponential(k) * inverse; });
      sync_warp();
      CMI_FAST_UNROLL
      for (int item = 0; item < ITEMS; item += 4) {  // rows that do not exist weigh nothing
        auto weight = *reinterpret_cast<const Four<float>*>(memory.scores + category * ITEMS + item);
        CMI_FAST_UNROLL
        for (int i = 0; i < 4; ++i) weight.x[i] = tile.views[item + i] >> view & 1 ? weight.x[i] : 0;
        *reinterpret_cast<Four<float>*>(memory.weights + lane * ITEMS + item) = weight;
      }
      sync_warp();
      add_weighted_units<SLICE>(sums, memory.weights, rows, memory.units, lane);
    };
    for_each_tile(x, schedule.walk(x.sequence(b), place.warp()), chunk, memory, lane, add, pool);
    sum_over_warps<SLICE>(sums, rows, x.depth(chunk), schedule.warps, shared, place, [&](int row, int k, float sum) {
      if (b < x.batch) narrow(sum, pooled + interest(x, b, slice + row) * x.d + chunk * DEPTH + k);
    });
  }
};

}  // namespace cmi_fast::cuda
