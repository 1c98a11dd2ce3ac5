// What nt_xent_loss does with single rows and pairs, before, between and after the passes: a warp a row.
#pragma once

#include "cuda/kernels/nt_xent_loss.h"

namespace cmi_fast::cuda {

// A row of the panel [2 pairs, width], and its factors as far as they are known.
template <class T>
struct PanelRows : RowKernel {
  const T *first, *second;
  int pairs, d, width;
  bool normalize;
  T* panel;
  RowFactors* factors;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int row = row_of(place), lane = place.lane();
    if (row >= 2 * pairs) return;
    const T* const from = row < pairs ? first + int64_t(row) * d : second + int64_t(row - pairs) * d;
    const Scale scale = normalize ? row_scale(from, d, lane) : Scale{1, 1};
    T* const to = panel + int64_t(row) * width;
    for (int k = lane; k < width; k += LANES) narrow(k < d ? widen(from[k]) * scale.scale : 0, to + k);
    if (lane == 0) factors[row] = {scale.inverse, 0, 0, 0};
  }
};

// The score to base 2 of a pair's two rows.
template <class T>
CMI_FAST_DEVICE float pair_score(const NtXent<T>& x, int pair, int lane) {
  const int other = pair + x.pairs;
  const T *const a = x.panel.rows + int64_t(pair) * x.panel.width, *const b =
                                                                       x.panel.rows + int64_t(other) * x.panel.width;
  float sum = 0;
  for (int k = lane; k < x.d; k += LANES) sum += widen(a[k]) * widen(b[k]);
  return sum_over_warp(sum) * (x.panel.factors[pair].inverse * x.sharpness()) * x.panel.factors[other].inverse;
}

// Losses of a pair's one or two anchors, and their L to base 2, infinite for a row that is no anchor. `partial`
// [parts, 2 pairs] has the sums with the shared shift; null: `log_sum` is there already.
template <class T>
struct PairLosses : RowKernel {
  NtXent<T> x;
  int anchor_views;
  const float* partial;
  int parts;
  float *log_sum, *losses;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int pair = row_of(place), lane = place.lane();
    if (pair >= x.pairs) return;
    const float positive = pair_score(x, pair, lane);
    for (int view = 0; view < 2; ++view) {
      const int row = view * x.pairs + pair;
      float log_sum_of_row = INFINITY;
      if (view < anchor_views && partial == nullptr) log_sum_of_row = log_sum[row];
      if (view < anchor_views && partial != nullptr) {
        float sum = 0;
        for (int part = lane; part < parts; part += LANES) sum += partial[part * (2 * int64_t(x.pairs)) + row];
        sum = sum_over_warp(sum);
        log_sum_of_row = sum == 0 ? -INFINITY : x.sharpness() + log2f(sum);
      }
      sync_warp();
      if (lane > 0) continue;
      log_sum[row] = log_sum_of_row;
      // fmaxf passes over NaN
      const float margin = (log_sum_of_row - positive) * LN_2;
      if (view < anchor_views) losses[row] = margin == margin ? softplus(margin) : margin;
    }
  }
};

// The factors of a pair's rows, of the cotangent w of their losses: b = w sigmoid(L - s_p), zero for no anchor; and the
// positive's part of along [2 pairs]. `scale`, where given, multiplies all of them.
template <class T>
struct PairWeights : RowKernel {
  NtXent<T> x;
  int anchor_views;
  const float *losses_grad, *log_sum, *scale;
  RowFactors* factors;
  float* along;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int pair = row_of(place), lane = place.lane();
    if (pair >= x.pairs) return;
    const float positive = pair_score(x, pair, lane), sharpness = x.sharpness();
    float pull = 0;
    sync_warp();
    if (lane > 0) return;
    for (int view = 0; view < 2; ++view) {
      const int row = view * x.pairs + pair;
      const float w = view < anchor_views ? losses_grad[row] * (scale ? *scale : 1) : 0;
      const float weight = w == 0 ? 0 : w / (1 + exp2f(positive - log_sum[row]));
      factors[row].share = weight == 0 ? 0 : weight * exp2f(sharpness - log_sum[row]);
      factors[row].log_sum = log_sum[row];
      factors[row].weight = weight;
      pull += weight * positive * LN_2;
    }
    along[pair] = along[x.positive(pair)] = -pull;
  }
};

// One warp: dt = -sum(along) / (2 t), times `unscale` where given.
template <class T>
struct TemperatureGradient : RowKernel {
  NtXent<T> x;
  const float *along, *unscale;
  float* gradient;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    float sum = 0;
    for (int row = place.lane(); row < 2 * x.pairs; row += LANES) sum += along[row];
    sum = sum_over_warp(sum);
    if (place.lane() == 0) *gradient = -sum / (2 * x.t()) * (unscale ? *unscale : 1);
  }
};

}  // namespace cmi_fast::cuda
