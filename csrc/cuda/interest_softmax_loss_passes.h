// interest_softmax_loss as a sequence of kernels. launch(grid, kernel) runs one: on a GPU, or in the tests' emulator.
#pragma once

#include "cuda/kernels/interest_softmax_rows.h"

namespace cmi_fast::cuda {

// Groups of eight columns of scores for m interests: 1, 2, 4 or 8.
inline int groups_for(int m) {
  int groups = 1;
  while (groups * 8 < m) groups *= 2;
  return groups;
}

// Where the gradients go; null for those that are not wanted.
template <class T>
struct InterestSoftmaxGradients {
  T *interests, *candidates, *general, *bias;
  float* temperature;
  bool of_users() const { return interests || general || temperature; }
  bool of_candidates() const { return candidates || bias; }
};

template <class T>
struct InterestSoftmaxPasses {
  InterestSoftmax<T> x;                       // its panels have no rows yet
  const T *interests, *candidates, *general;  // [users, m, d], [count, d], [users, d] or null

  int width() const { return (x.d + 15) / 16 * 16; }
  int64_t panel_size() const {
    return (int64_t(x.users) * x.padded() + x.count + (general ? x.users : 0)) * int64_t(width());
  }
  Parts parts_of_candidates() const { return Parts::of(x.user_tiles(), x.candidate_tiles()); }
  Parts parts_of_users() const { return Parts::of(x.candidate_tiles(), x.user_tiles()); }
  int64_t log_sums_size() const { return int64_t(parts_of_candidates().count) * x.users; }
  int64_t user_sums_size() const { return int64_t(parts_of_candidates().count) * x.users * x.m * x.d; }
  int64_t candidate_sums_size() const { return int64_t(parts_of_users().count) * x.count * x.d; }
  int64_t bias_sums_size() const { return int64_t(parts_of_users().count) * x.count; }

  // panel [panel_size()] and log_sums [log_sums_size()] are room to work in; losses [users], saved [2, users].
  template <class Launch>
  void forward(T* panel, float* log_sums, float* losses, float* saved, const Launch& launch) const {
    const InterestSoftmax<T> y = prepare(panel, launch);
    const Parts parts = parts_of_candidates();
    launch(Grid{y.user_tiles(), parts.count}, OthersLogSums<T>{y, parts, log_sums});
    launch(warps(y.users), UserLosses<T>{{}, y, parts.count, log_sums, losses, saved});
  }

  // losses_grad [users], or one number where its stride is zero, times `factor`. Room to work in: weights [users], the
  // sums of sizes above for the gradients that are wanted, temperature_parts [users] likewise, `scale` two numbers for
  // float16.
  template <class Launch>
  void backward(T* panel, const float* losses_grad, int stride, float factor, const float* saved, float* weights,
                float* scale, float* user_sums, float* candidate_sums, float* bias_sums, float* temperature_parts,
                const InterestSoftmaxGradients<T>& gradients, const Launch& launch) const {
    InterestSoftmax<T> y = prepare(panel, launch);
    y.log_sums = saved;
    y.weights = weights;
    const Grid threads{(y.users + THREADS - 1) / THREADS};
    const float* const unscale = scale ? scale + 1 : nullptr;
    launch(threads, UserWeights{{}, losses_grad, saved, y.users, stride, factor, weights});
    if (scale) {
      launch(Grid{1}, HalfRange{{}, weights, y.users, scale});
      launch(threads, ScaledWeights{{}, weights, y.users, scale});
    }
    const int chunks = y.candidates.chunks();
    if (gradients.of_users()) {
      const Parts parts = parts_of_candidates();
      launch(Grid{y.user_tiles(), chunks, parts.count}, InterestSums<T>{y, parts, user_sums});
      add_parts(user_sums, parts, int64_t(y.users) * y.m * y.d, launch);
      launch(warps(y.users), UserGradients<T>{{},
                                              y,
                                              user_sums,
                                              unscale,
                                              gradients.interests,
                                              gradients.general,
                                              gradients.temperature ? temperature_parts : nullptr});
      if (gradients.temperature) launch(Grid{1}, Total{temperature_parts, y.users, 1, gradients.temperature});
    }
    if (gradients.of_candidates()) {
      const Parts parts = parts_of_users();
      launch(Grid{y.candidate_tiles(), chunks, parts.count}, CandidateSums<T>{y, parts, candidate_sums, bias_sums});
      add_parts(candidate_sums, parts, int64_t(y.count) * y.d, launch);
      add_parts(bias_sums, parts, y.count, launch);
      launch(warps(y.count),
             CandidateGradients<T>{{}, y, candidate_sums, bias_sums, unscale, gradients.candidates, gradients.bias});
    }
  }

 private:
  // Sums [parts, columns] become those of all parts, in place.
  template <class Launch>
  static void add_parts(float* sums, const Parts& parts, int64_t columns, const Launch& launch) {
    if (parts.count > 1) launch(SumOfParts::grid(columns), SumOfParts{sums, parts.count, columns, sums});
  }

  template <class Launch>
  InterestSoftmax<T> prepare(T* panel, const Launch& launch) const {
    InterestSoftmax<T> y = x;
    const auto copy = [&](const T* from, int64_t count, int m, int padded) {
      const Panel<T> rows{panel, nullptr, width()};
      launch(warps(count), PaddedRows<T>{{}, from, count, m, padded, x.d, width(), panel});
      panel += count * width();
      return rows;
    };
    y.interests = copy(interests, int64_t(x.users) * x.padded(), x.m, x.padded());
    y.candidates = copy(candidates, x.count, 1, 1);
    y.general = general ? copy(general, x.users, 1, 1) : Panel<T>{nullptr, nullptr, width()};
    return y;
  }
};

}  // namespace cmi_fast::cuda
