// The gradients of both poolings.
#pragma once

#include "cuda/kernels/soft_assignment_pool.h"

namespace cmi_fast::cuda {

// Where gradients go; null where nobody wants them.
template <class S>
struct PoolGradients {
  S* items;            // [positions, d], zeros before
  float* gathered;     // of the table's rows: [positions, d]
  int* keys;           // [positions]: the row of the table, for each position that has a gradient; with `gathered`
  float* categories;   // [blocks, m, d], of the unit categories
  float* temperature;  // [blocks * WARPS]
};

// What sequences give to the gradients: each warp takes several, one after the other, with one sum for the categories.
// A block has a chunk of dimensions and a slice of the categories, of which the first one takes the items.
template <class S, class C>
struct PoolBackward {
  PoolInputs<S, C> x;
  PoolSchedule schedule;
  const C* pooled_grad;    // [view_count, batch, m, d]
  bool cotangent_aligned;  // rows consist of whole Four<C>
  PoolGradients<S> gradients;
  static constexpr int SHARED = WARPS * int(sizeof(WarpMemory<S>));
  static constexpr int SLICE = 16;
  static_assert(SHARED >= SLICE_BYTES<SLICE>);

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    WarpMemory<S>& memory = WarpMemory<S>::of(shared, place);
    const int chunk = place.block_y, slice = place.block_z * SLICE, lane = place.lane();
    const int rows = x.m - slice < SLICE ? x.m - slice : SLICE;
    const float t = x.t();
    const bool of_items = slice == 0 && (gradients.items || gradients.gathered);
    SliceSums<SLICE> sums = {};
    float slopes = 0;
    for (int64_t block = place.block_x; block < schedule.blocks(); block += schedule.backward_blocks()) {
      const int64_t b = schedule.sequence(block, place.warp());
      const Walk walk = schedule.walk(x.sequence(b), place.warp());
      const auto add = [&](const PoolTile& tile, int at, bool first) {
        add_scores(x, at, first, memory, lane);
        add_gains(b, tile, at, first, memory, lane);
      };
      const auto differentiate = [&](const PoolTile& tile) {
        sync_warp();
        slopes += differentiate_softmax(memory, t, lane);
        sync_warp();
        if (of_items) write_items(walk, b, tile, chunk, memory, lane);
        if (gradients.categories)
          add_weighted_units<SLICE>(sums, memory.weights + slice * ITEMS, rows, memory.units, lane);
      };
      for_each_tile(x, walk, chunk, memory, lane, add, differentiate);
    }
    if (gradients.temperature && slice == 0 && chunk == 0) {
      slopes = sum_over_warp(slopes);
      if (lane == 0) gradients.temperature[place.block_x * WARPS + place.warp()] = -slopes / t;
    }
    if (!gradients.categories) return;
    sum_over_warps<SLICE>(sums, rows, x.depth(chunk), WARPS, shared, place, [&](int row, int k, float sum) {
      gradients.categories[(int64_t(place.block_x) * x.m + slice + row) * x.d + chunk * DEPTH + k] = sum;
    });
  }

  // memory.weights [m, ITEMS] = or += one chunk's part of a_ik = v_i . U_k, over the views that an item counts in.
  CMI_FAST_DEVICE void add_gains(int64_t b, const PoolTile& tile, int chunk, bool first, WarpMemory<S>& memory,
                                 int lane) const {
    const int depth = x.depth(chunk);
    for (int view = 0; view < x.view_count; ++view) {
      for (int k = 0; k < x.m; k += ROWS) {
        const auto cotangent = [&](int r, int dimension) {
          const int64_t row = interest(x, b, view * x.m + (k + r < x.m ? k + r : x.m - 1));
          return four_of(pooled_grad + row * x.d + chunk * DEPTH, dimension, depth);
        };
        multiply_rows(memory.units, depth, lane, cotangent, [&](int item, int r, float product) {
          if (k + r >= x.m) return;
          float& gain = memory.weights[(k + r) * ITEMS + item];
          const float before = first && view == 0 ? 0 : gain;
          gain = tile.views[item] >> view & 1 ? before + product : before;
        });
      }
    }
  }

  // ds over a, radial [ITEMS] = v_i . dv_i; returns the lane's part of the sum of ds_ik s_ik.
  CMI_FAST_DEVICE float differentiate_softmax(WarpMemory<S>& memory, float t, int lane) const {
    float *const scores = memory.scores, *const gains = memory.weights;
    const Softmax softmax(scores, x.m, t, lane);
    const float inverse = 1 / softmax.total;
    float mean = 0, slope = 0, radial = 0;
    Softmax::for_each_category(x.m, lane, [&](int k) { mean += softmax.exponential(k) * inverse * gains[k]; });
    mean = sum_over_item(mean);
    Softmax::for_each_category(x.m, lane, [&](int k) {
      const float p = softmax.exponential(k) * inverse, gain = gains[k], ds = p * (gain - mean) / t;
      radial += p * gain;
      slope += ds * scores[k];
      scores[k] = p;
      gains[k] = ds;
    });
    radial = sum_over_item(radial + slope);
    if (lane < ITEMS) memory.radial[lane] = radial;
    return slope;
  }

  // dx_i = (dv_i - v_i (v_i . dv_i)) / |x_i| with dv_i = sum_k p_ik U_k + ds_ik c_k, of a tile's items.
  CMI_FAST_DEVICE void write_items(const Walk& walk, int64_t b, const PoolTile& tile, int chunk,
                                   const WarpMemory<S>& memory, int lane) const {
    const int depth = x.depth(chunk);
    float sums[ITEMS][COLUMNS] = {};
    // The weights that items give to a row whose dimensions of this lane are row(column).
    const auto add_row = [&](const float* weights, int counting, const auto& row) {
      float other[COLUMNS];
      CMI_FAST_UNROLL
      for (int column = 0; column < COLUMNS; ++column) other[column] = row(column * LANES + lane);
      CMI_FAST_UNROLL
      for (int item = 0; item < ITEMS; item += 4) {
        const auto weight = *reinterpret_cast<const Four<float>*>(weights + item);
        CMI_FAST_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float of_item = counting >> (item + i) & 1 ? weight.x[i] : 0;
          CMI_FAST_UNROLL
          for (int column = 0; column < COLUMNS; ++column) sums[item + i][column] += of_item * other[column];
        }
      }
    };
    const int64_t width = int64_t(x.chunks()) * DEPTH;
    for (int k = 0; k < x.m; ++k) {
      const float* const category = x.categories + k * width + chunk * DEPTH;
      add_row(memory.weights + k * ITEMS, ~0, [&](int dimension) { return category[dimension]; });
    }
    for (int view = 0; view < x.view_count; ++view) {
      int counting = 0;
      for (int item = 0; item < ITEMS; ++item) counting |= (tile.views[item] >> view & 1) << item;
      for (int k = 0; counting && k < x.m; ++k) {
        const C* const cotangent = pooled_grad + interest(x, b, view * x.m + k) * x.d + chunk * DEPTH;
        add_row(memory.scores + k * ITEMS, counting,
                [&](int dimension) { return dimension < depth ? widen(cotangent[dimension]) : 0; });
      }
    }
    CMI_FAST_UNROLL
    for (int item = 0; item < ITEMS; ++item) {
      if (tile.views[item] == 0) continue;
      const int64_t position = walk.position(tile.number, item);
      CMI_FAST_UNROLL
      for (int column = 0; column < COLUMNS; ++column) {
        const int k = column * LANES + lane;
        const float unit = memory.units[item * UNIT_STRIDE + k];
        const float gradient =
            (sums[item][column] - unit * memory.radial[item]) * memory.inverse[item] * memory.scale[item];
        const int64_t to = position * x.d + chunk * DEPTH + k;
        if (k < depth && gradients.gathered) gradients.gathered[to] = gradient;
        if (k < depth && gradients.items) narrow(gradient, gradients.items + to);
      }
    }
    if (gradients.gathered && chunk == 0 && lane < ITEMS && tile.exists(lane))
      gradients.keys[walk.position(tile.number, lane)] = int(tile.rows[lane]);
  }

  CMI_FAST_DEVICE Four<float> four_of(const C* row, int k, int depth) const {
    Four<float> x = {};
    if (cotangent_aligned) {
      const auto stored = *reinterpret_cast<const Four<C>*>(row + k);
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) x.x[i] = widen(stored.x[i]);
    } else {
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) x.x[i] = k + i < depth ? widen(row[k + i]) : 0;
    }
    return x;
  }
};

}  // namespace cmi_fast::cuda
