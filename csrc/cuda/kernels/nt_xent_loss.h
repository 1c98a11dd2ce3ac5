// The passes of nt_xent_loss over all pairs of rows. The algebra is in docs/kernels.md, the schedule in docs/cuda.md.
//
// The panel holds the rows of `first`, then of `second`, each times a power of two; scores are taken to base 2.
#pragma once

#include <cmath>

#include "cuda/kernels/tile.h"
#include "cuda/nt_xent_schedule.h"

namespace cmi_fast::cuda {

// One call's rows and options.
template <class T>
struct NtXent {
  Panel<T> panel;  // [2 pairs, width]
  int pairs, d;
  float temperature;
  const float* temperature_pointer;  // where it is a tensor
  bool cross_view;

  CMI_FAST_DEVICE float t() const { return temperature_pointer ? *temperature_pointer : temperature; }
  // What turns a cosine into a score to base 2; the scores' bound, and so the shift that all anchors may share.
  CMI_FAST_DEVICE float sharpness() const { return LOG2_E / t(); }
  CMI_FAST_HOST_DEVICE int positive(int row) const { return row < pairs ? row + pairs : row - pairs; }
  CMI_FAST_HOST_DEVICE Range view(int v) const { return {v * pairs, (v + 1) * pairs}; }
  // The rows among which those of view `v` have their negatives.
  CMI_FAST_HOST_DEVICE Range others(int v) const { return cross_view ? view(1 - v) : Range{0, 2 * pairs}; }
  // Whether two rows that exist are each other's negatives.
  CMI_FAST_HOST_DEVICE bool negatives(int i, int j) const { return j != i && j != positive(i); }
};

// Adds to partial [parts, 2 pairs] the sums of e^(score - 1/t), for unit rows and a temperature that allows it. A tile
// serves its rows and its columns as anchors: the fixed tile's sums stay in registers, as columns, while the moving
// tiles add theirs row by row.
template <class T>
struct TriangleSums {
  NtXent<T> x;
  TriangleSchedule schedule;
  float* partial;
  static constexpr int SHARED = SHARED_BYTES<T>;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    int moving_part = place.block_x, fixed_part = place.block_y;  // cross_view: every pair, of parts of either view
    if (!x.cross_view && !schedule.pair(place.block_x, &moving_part, &fixed_part)) return;
    const Range moving_rows = x.cross_view ? x.view(0) : x.others(0);
    const Range fixed_rows = x.cross_view ? x.view(1) : x.others(0);
    const float sharpness = x.sharpness();
    const int64_t n = 2 * int64_t(x.pairs);
    float *const to_moving = partial + fixed_part * n, *const to_fixed = partial + moving_part * n;
    for (int tile = schedule.first_tile(fixed_part); tile < schedule.last_tile(fixed_part); ++tile) {
      const Range fixed{fixed_rows.first + tile * TILE, fixed_rows.last};
      const int first = moving_rows.first + schedule.first_tile(moving_part) * TILE;
      int last = moving_rows.first + schedule.last_tile(moving_part) * TILE;
      if (last > moving_rows.last) last = moving_rows.last;
      if (!x.cross_view && last > fixed.first + TILE) last = fixed.first + TILE;  // up to the diagonal
      float columns[TILE / 8][2] = {};
      const auto add_exponentials = [&](int row, Scores& scores, const char* fixed_tile, const char* moving_tile) {
        float sums[2] = {0, 0};
        CMI_FAST_UNROLL
        for (int i = 0; i < TILE / 8; ++i) {
          CMI_FAST_UNROLL
          for (int element = 0; element < 4; ++element) {
            const int r = score_row(element, place), c = score_column(i, element, place);
            const float factor = tile_factors(moving_tile, r).inverse * sharpness * tile_factors(fixed_tile, c).inverse;
            const bool counts = row + r < last && fixed.first + c < fixed.last && x.negatives(row + r, fixed.first + c);
            const float exponential = counts ? fast_exp2(scores[i][element] * factor - sharpness) : 0;
            sums[element / 2] += exponential;
            columns[i][element % 2] += exponential;
          }
        }
        if (!x.cross_view && row == fixed.first) return;  // on the diagonal the columns have it all
        CMI_FAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float sum = sum_over_columns(sums[half]);
          const int r = row + score_row(half * 2, place);
          if (place.lane() % 4 == 0 && r < last) to_moving[r] += sum;
        }
      };
      sweep<T, false>(x.panel, fixed, Range{first, last}, x.panel.chunks() - 1, shared, place, add_exponentials);
      float* const of_warps = reinterpret_cast<float*>(shared);  // [WARPS, TILE]
      CMI_FAST_UNROLL
      for (int i = 0; i < TILE / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 2; ++element) {
          const float sum = sum_over_rows(columns[i][element]);
          if (place.lane() < 4) of_warps[place.warp() * TILE + score_column(i, element, place)] = sum;
        }
      }
      sync_threads();
      const int row = fixed.first + place.thread;
      if (place.thread < TILE && row < fixed.last) {
        float sum = 0;
        for (int warp = 0; warp < WARPS; ++warp) sum += of_warps[warp * TILE + place.thread];
        to_fixed[row] += sum;
      }
      sync_threads();
    }
  }
};

// The tile of rows of a view that a block owns in the passes below.
template <class T>
CMI_FAST_DEVICE Range own_rows(const NtXent<T>& x, int view, Place place) {
  const Range rows = x.view(view);
  return {rows.first + place.block_x * TILE, rows.last};
}

// L [2 pairs] to base 2 of a tile of one view's anchors, each with a running maximum.
template <class T>
struct RunningLogSums {
  NtXent<T> x;
  float* log_sum;
  static constexpr int SHARED = SHARED_BYTES<T>;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int view = place.block_y;
    const Range own = own_rows(x, view, place), others = x.others(view);
    const float sharpness = x.sharpness();
    float shift[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    const auto add_exponentials = [&](int column, Scores& scores, const char* own_tile, const char* tile) {
      float top[2] = {shift[0], shift[1]}, finite[2];
      CMI_FAST_UNROLL
      for (int i = 0; i < TILE / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 4; ++element) {
          const int r = score_row(element, place), c = score_column(i, element, place);
          const float factor = tile_factors(own_tile, r).inverse * sharpness * tile_factors(tile, c).inverse;
          const bool counts = column + c < others.last && x.negatives(own.first + r, column + c);
          scores[i][element] = counts ? scores[i][element] * factor : -INFINITY;
          top[element / 2] = fmaxf(top[element / 2], scores[i][element]);
        }
      }
      CMI_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float raised = max_over_columns(top[half]);
        finite[half] = raised == -INFINITY ? 0 : raised;
        total[half] *= fast_exp2(shift[half] - finite[half]);
        shift[half] = raised;
      }
      CMI_FAST_UNROLL
      for (int i = 0; i < TILE / 8; ++i) CMI_FAST_UNROLL
      for (int element = 0; element < 4; ++element)
        total[element / 2] += fast_exp2(scores[i][element] - finite[element / 2]);
    };
    sweep<T, true>(x.panel, own, others, x.panel.chunks() - 1, shared, place, add_exponentials);
    CMI_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_over_columns(total[half]);
      const int row = own.first + score_row(half * 2, place);
      if (place.lane() % 4 == 0 && row < own.last) log_sum[row] = sum == 0 ? -INFINITY : shift[half] + log2f(sum);
    }
  }
};

// unit_grad [2 pairs, d], one chunk of a tile of one view's rows: dz_i = (sum_j G_ij z_j - (b_i + b_p) z_p) / t. A
// block owns what it writes, and all L are known: FlashAttention's forward with Q = K = V = Z and weights without
// rescaling. To along [2 pairs] it adds the negatives' part of z_i . dz_i before G is rounded: the temperature's
// gradient is a small difference of large sums.
template <class T, bool RUNNING>
struct Gradient {
  NtXent<T> x;
  int first_view;
  const float* unscale;  // null: 1
  float *unit_grad, *along;
  static constexpr int SHARED = SHARED_BYTES<T>;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int view = first_view + place.block_z, chunk = place.block_y;
    const Range own = own_rows(x, view, place), others = x.others(view);
    const float sharpness = x.sharpness();
    const int depth = x.panel.depth(chunk);
    Sums<T> sums = {};
    float slopes[2] = {0, 0};
    const auto add_tile = [&](int column, Scores& scores, const char* own_tile, const char* tile) {
      CMI_FAST_UNROLL
      for (int i = 0; i < TILE / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 4; ++element) {
          const int r = score_row(element, place), c = score_column(i, element, place);
          const RowFactors &mine = tile_factors(own_tile, r), &other = tile_factors(tile, c);
          const float score = scores[i][element] * (mine.inverse * sharpness * other.inverse);
          float g;
          if constexpr (RUNNING)
            g = mine.weight * fast_exp2(score - mine.log_sum) + other.weight * fast_exp2(score - other.log_sum);
          else
            g = fast_exp2(score - sharpness) * (mine.share + other.share);
          const bool counts = column + c < others.last && x.negatives(own.first + r, column + c);
          if (!counts) g = 0;
          slopes[element / 2] += g * score;
          scores[i][element] = g * other.inverse;
        }
      }
      if constexpr (sizeof(T) == 4)
        add_weighted_floats(sums, scores, tile, depth, shared + 4 * TILE_BYTES, place);
      else  // few terms may dominate with a running maximum, and their rounding would then not average out
        add_weighted_halves<T, RUNNING>(sums, scores, tile, depth, place);
    };
    sweep<T, true>(x.panel, own, others, chunk, shared, place, add_tile);
    const float factor = (unscale ? *unscale : 1) / x.t();
    CMI_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = own.first + score_row(half * 2, place);
      const float slope = sum_over_columns(slopes[half]) * LN_2;
      if (row >= own.last) continue;
      if (chunk == 0 && place.lane() % 4 == 0) along[row] += slope;
      const int positive = x.positive(row);
      const RowFactors &of_row = x.panel.factors[row], &of_positive = x.panel.factors[positive];
      const float pull = (of_row.weight + of_positive.weight) * of_positive.inverse;
      CMI_FAST_UNROLL
      for (int i = 0; i < CHUNK<T> / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 2; ++element) {
          const int dimension = chunk * CHUNK<T> + score_column(i, element, place);
          if (dimension >= x.d) continue;
          const float z = widen(x.panel.rows[int64_t(positive) * x.panel.width + dimension]);
          unit_grad[int64_t(row) * x.d + dimension] = (sums[i][half * 2 + element] - pull * z) * factor;
        }
      }
    }
  }
};

}  // namespace cmi_fast::cuda
