// The backward of interest_softmax_loss: each pair of user and candidate has one interest that matters.
#pragma once

#include "cpu/kernels/chosen_rows.h"
#include "cpu/kernels/interest_softmax_layout.h"

namespace cmi_fast {
namespace {

template <class T>
struct InterestSoftmaxBackward : InterestSoftmaxLayout<T> {
  using Layout = InterestSoftmaxLayout<T>;
  using Layout::LANES;
  using Layout::padded;
  using Layout::pair;
  using Layout::query;
  using Layout::strip;
  using Layout::tiles_of;
  using Layout::weighed;
  using typename Layout::Gradients;
  using typename Layout::Problem;
  using typename Layout::V;

  // Brings what the backward reads of a pair of user and tile from the outer caches: 64 candidates at a time are too
  // few for the processor to notice a sequence.
  static void prefetch(const Gradients& gradients, int64_t pair) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t c = 0; c < TILE; c += LINE) __builtin_prefetch(gradients.exponentials + pair + c);
    __builtin_prefetch(gradients.best + pair);
  }

  static T scale(const Problem& p, const Gradients& gradients, int64_t user, int64_t tile) {
    return gradients.losses[user] * gradients.scales[user * tiles_of(p.count) + tile];
  }

  // g of the user's target.
  static T target_weight(const Gradients& gradients, int64_t user) {
    return -gradients.losses[user] * gradients.misses[user];
  }

  // weights [users, TILE] = g of a range of users and the tile's candidates.
  static void weigh(const Problem& p, const Gradients& gradients, int64_t first, int64_t users, int64_t tile,
                    T* weights) {
    for (int64_t user = first; user < first + users; ++user, weights += TILE) {
      const T factor = scale(p, gradients, user, tile);
      const T* const exponentials = gradients.exponentials + pair(p, tile, user);
      for (int64_t c = 0; c < TILE; c += LANES) store(weights + c, load<V>(exponentials + c) * factor);
      const int64_t target = p.targets[user] - tile * TILE;
      if (target >= 0 && target < TILE) weights[target] = target_weight(gradients, user);
    }
  }

  // dq [m, padded d] of a user += the gradients from the non-targets of a tile, each to its best interest.
  static void add_candidates(const Problem& p, const Gradients& gradients, int64_t user, int64_t tile, T* dq) {
    const int64_t wide = padded(p.d), at = pair(p, tile, user);
    const T *const exponentials = gradients.exponentials + at, *const rows = p.rows + tile * TILE * wide;
    const T factor = scale(p, gradients, user, tile);
    const uint8_t* const best = gradients.best + at;
    const auto add = [&](uint64_t chosen, T* to) {
      int64_t j = 0;
      for (; j + 4 * LANES <= wide; j += 4 * LANES)
        add_rows<V, 4>(chosen, exponentials, rows + j, wide, factor, to + j);
      for (; j < wide; j += LANES) add_rows<V, 1>(chosen, exponentials, rows + j, wide, factor, to + j);
    };
    if (p.m <= FEW_INTERESTS) {
      for (int64_t k = 0; k < p.m; ++k)
        if (const uint64_t chosen = equal_bytes(best, uint8_t(k))) add(chosen, dq + k * wide);
    } else {
      for (int64_t c = 0; c < TILE; ++c) add(uint64_t(1) << c, dq + best[c] * wide);
    }
  }

  static double user_gradients(const Problem& p, const Gradients& gradients, int64_t begin, int64_t end, T* workspace) {
    const int64_t m = p.m, wide = padded(p.d), tiles = tiles_of(p.count);
    T *const weights = workspace, *const dq = workspace + weighed(m) * TILE;
    double temperature = 0;
    set_zero(weights, weighed(m) * TILE);
    for (int64_t first = begin; first < end; first += strip(m)) {
      const int64_t users = smaller(strip(m), end - first);
      set_zero(dq, users * m * wide);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        if (m == 1) {  // nothing to choose: a dense product
          weigh(p, gradients, first, users, tile, weights);
          product<V, ROWS, VECTORS>(round_up(users, ROWS), wide, TILE, Scalars<T>{weights, TILE, 1},
                                    p.rows + tile * TILE * wide, wide, dq, wide, true);
          continue;
        }
        for (int64_t u = 0; u < users; ++u) {
          if (tile + 1 < tiles) prefetch(gradients, pair(p, tile + 1, first + u));
          add_candidates(p, gradients, first + u, tile, dq + u * m * wide);
        }
      }
      for (int64_t u = 0; u < users; ++u)
        temperature += store_user_gradients(p, gradients, first + u, dq + u * m * wide, dq + users * m * wide);
    }
    return temperature;
  }

  // The target's part of dq [m, padded d].
  static void add_target(const Problem& p, const Gradients& gradients, int64_t user, T* dq) {
    const int64_t wide = padded(p.d), target = p.targets[user];
    const uint8_t best = gradients.best[pair(p, target / TILE, user) + target % TILE];
    const T weight = target_weight(gradients, user);
    for (int64_t j = 0; j < wide; ++j) dq[best * wide + j] += weight * p.rows[target * wide + j];
  }

  // From dq [m, padded d] of a user, which it scales; returns the user's part of the temperature's gradient.
  static double store_user_gradients(const Problem& p, const Gradients& gradients, int64_t user, T* dq, T* workspace) {
    const int64_t m = p.m, d = p.d, wide = padded(d);
    T* const general = workspace + wide;
    set_zero(general, d);
    if (m > 1) add_target(p, gradients, user, dq);
    double temperature = 0;
    for (int64_t k = 0; k < m; ++k, dq += wide) {
      add(dq, d, general);
      const T* const interest = read_row(p.interests, user * m + k, d, workspace);
      T along = 0;
#pragma omp simd reduction(+ : along)
      for (int64_t j = 0; j < d; ++j) {
        dq[j] *= p.inverse_temperature;
        along += dq[j] * interest[j];
      }
      temperature -= double(along) * p.inverse_temperature;
      if (gradients.interests.data) write_row(dq, user * m + k, d, gradients.interests);
    }
    if (gradients.general.data) write_row(general, user, d, gradients.general);
    return temperature;
  }

  // dv [TILE, padded d] of a tile += the weighted best queries of a range of users.
  static void add_users(const Problem& p, const Gradients& gradients, int64_t first, int64_t users, int64_t tile,
                        const T* weights, T* dv) {
    const int64_t wide = padded(p.d);
    const T* const queries = query(p, first);
    if (p.m == 1) {
      product<V, ROWS, VECTORS>(TILE, wide, users, Scalars<T>{weights, 1, TILE}, queries, wide, dv, wide, true);
      return;
    }
    const uint8_t* const best = gradients.best + pair(p, tile, first);
    const auto column = [&](int64_t c) { return Column<T>{users, p.m, wide, TILE, weights + c, best + c}; };
    int64_t j = 0;
    for (; j + 4 * LANES <= wide; j += 4 * LANES)
      for (int64_t c = 0; c < TILE; ++c) add_queries<V, 4>(column(c), queries + j, dv + c * wide + j);
    for (; j < wide; j += LANES)
      for (int64_t c = 0; c < TILE; ++c) add_queries<V, 1>(column(c), queries + j, dv + c * wide + j);
  }

  static void candidate_gradients(const Problem& p, const Gradients& gradients, int64_t begin, int64_t end,
                                  T* workspace) {
    const int64_t d = p.d, wide = padded(d), step = weighed(p.m);
    T *const weights = workspace, *const bias = weights + step * TILE, *const dv = bias + TILE;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t count = smaller(p.count - tile * TILE, TILE);
      set_zero(bias, TILE * (1 + wide));
      for (int64_t first = 0; first < p.users; first += step) {
        const int64_t users = smaller(step, p.users - first);
        weigh(p, gradients, first, users, tile, weights);
        for (int64_t user = first + users; user < smaller(first + 2 * users, p.users); ++user)
          prefetch(gradients, pair(p, tile, user));
        for (int64_t u = 0; gradients.bias.data && u < users; ++u) add(weights + u * TILE, TILE, bias);
        if (gradients.candidates.data) add_users(p, gradients, first, users, tile, weights, dv);
      }
      for (int64_t c = 0; gradients.candidates.data && c < count; ++c)
        write_row(dv + c * wide, tile * TILE + c, d, gradients.candidates);
      if (gradients.bias.data) write_columns(bias, 0, p.count, tile * TILE, count, gradients.bias);
    }
  }
};

}  // namespace
}  // namespace cmi_fast
