// What interest_softmax_loss does with single rows, before, between and after the passes: a warp a row.
#pragma once

#include "cuda/kernels/interest_softmax_loss.h"

namespace cmi_fast::cuda {

// Rows [count / padded, m, d] as those of a panel [count, width], `padded` for each m; those that are missing repeat
// the first.
template <class T>
struct PaddedRows : RowKernel {
  const T* from;
  int64_t count;
  int m, padded, d, width;
  T* panel;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int64_t row = row_of(place);
    if (row >= count) return;
    const int64_t k = row % padded;
    const T* const x = from + (row / padded * m + (k < m ? k : 0)) * d;
    for (int i = place.lane(); i < width; i += LANES) narrow(i < d ? widen(x[i]) : 0, panel + row * width + i);
  }
};

// Losses, and what the backward needs: to saved [2, users] the log-sums over candidates but the target, and the
// target's scores. log_sums [parts, users].
template <class T>
struct UserLosses : RowKernel {
  InterestSoftmax<T> x;
  int parts;
  const float* log_sums;
  float *losses, *saved;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int user = row_of(place), lane = place.lane();
    if (user >= x.users) return;
    const int target = x.target_of(user);
    const int64_t width = x.candidates.width;
    float score = NAN;  // of a target that is no row
    if (target >= 0) {
      const T* const candidate = x.candidates.rows + target * width;
      const auto product = [&](const T* row) {
        float sum = 0;
        for (int i = lane; i < x.d; i += LANES) sum += widen(row[i]) * widen(candidate[i]);
        return sum_over_warp(sum);
      };
      float best = -INFINITY;
      for (int k = 0; k < x.m; ++k)
        best = max_or_nan(best, product(x.interests.rows + (int64_t(user) * x.padded() + k) * width));
      score = x.score(best, x.general.rows ? product(x.general.rows + user * width) : 0, target);
    }
    if (lane > 0) return;
    const float log_sum =
        OthersLogSums<T>::add_log_sums(parts, [&](int part) { return log_sums[int64_t(part) * x.users + user]; });
    const float margin = (log_sum - score) * LN_2;
    losses[user] = margin == margin ? softplus(margin) : margin;  // fmaxf passes over NaN
    saved[user] = log_sum;
    saved[x.users + user] = score;
  }
};

// weights [users]: the cotangent of a loss times the probability that the target does not have. losses_grad has one
// number for all users where its stride is zero. A thread a user.
struct UserWeights : RowKernel {
  const float *losses_grad, *saved;
  int users, stride;
  float factor;
  float* weights;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int user = place.block_x * THREADS + place.thread;
    if (user >= users) return;
    const float w = losses_grad[int64_t(user) * stride] * factor;
    weights[user] = w == 0 ? 0 : w / (1 + exp2f(saved[users + user] - saved[user]));
  }
};

// weights *= *scale. A thread a number.
struct ScaledWeights : RowKernel {
  float* weights;
  int count;
  const float* scale;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int i = place.block_x * THREADS + place.thread;
    if (i < count) weights[i] *= *scale;
  }
};

// The gradients of a user's interests and general interest, and its part of the temperature's, those that are not null.
// sums [users, m, d]; every pair's derivative is in one interest's, so their sum is the general interest's.
template <class T>
struct UserGradients : RowKernel {
  InterestSoftmax<T> x;
  const float *sums, *unscale;
  T *interests_grad, *general_grad;
  float* temperature_parts;  // [users]

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int user = row_of(place), lane = place.lane();
    if (user >= x.users) return;
    const float factor = unscale ? *unscale : 1, inverse = 1 / x.t();
    float slope = 0;
    for (int i = lane; i < x.d; i += LANES) {
      float of_general = 0;
      for (int k = 0; k < x.m; ++k) {
        const int64_t at = (int64_t(user) * x.m + k) * x.d + i;
        const float sum = sums[at] * factor;
        of_general += sum;
        slope += sum * inverse * widen(x.interests.rows[(int64_t(user) * x.padded() + k) * x.interests.width + i]);
        if (interests_grad) narrow(sum * inverse, interests_grad + at);
      }
      if (general_grad) narrow(of_general, general_grad + int64_t(user) * x.d + i);
    }
    slope = sum_over_warp(slope);
    if (temperature_parts && lane == 0) temperature_parts[user] = -slope * inverse;
  }
};

// The gradients of a candidate and its bias, those that are not null. sums [count, d], bias_sums [count].
template <class T>
struct CandidateGradients : RowKernel {
  InterestSoftmax<T> x;
  const float *sums, *bias_sums, *unscale;
  T *candidates_grad, *bias_grad;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int row = row_of(place), lane = place.lane();
    if (row >= x.count) return;
    const float factor = unscale ? *unscale : 1, scale = CandidateSums<T>::scaled(x.t());
    for (int i = lane; candidates_grad && i < x.d; i += LANES) {
      const int64_t at = int64_t(row) * x.d + i;
      narrow(sums[at] * factor * scale, candidates_grad + at);
    }
    if (bias_grad && lane == 0) narrow(bias_sums[row] * factor, bias_grad + row);
  }
};

// The sum of `count` numbers times `factor`, in one order. One block.
struct Total {
  static constexpr int SHARED = WARPS * int(sizeof(float));
  const float* numbers;
  int count;
  float factor;
  float* total;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    float* const of_warps = reinterpret_cast<float*>(shared);
    float sum = 0;
    for (int i = place.thread; i < count; i += THREADS) sum += numbers[i];
    sum = sum_over_warp(sum);
    if (place.lane() == 0) of_warps[place.warp()] = sum;
    sync_threads();
    if (place.thread > 0) return;
    sum = 0;
    for (int warp = 0; warp < WARPS; ++warp) sum += of_warps[warp];
    *total = sum * factor;
  }
};

}  // namespace cmi_fast::cuda
