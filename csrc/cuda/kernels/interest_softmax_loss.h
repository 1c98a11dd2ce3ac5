// The passes of interest_softmax_loss over all pairs of users and candidates. The algebra is in docs/kernels.md, the
// schedule in docs/cuda.md.
#pragma once

#include "cuda/kernels/interest_softmax_tiles.h"

namespace cmi_fast::cuda {

// To log_sums [parts, users]: the logarithm to base 2 of the sum of 2^score over a part of the candidates, the target
// and those that do not count left out.
template <class T>
struct OthersLogSums {
  InterestSoftmax<T> x;
  Parts parts;  // of the tiles of candidates
  float* log_sums;
  static constexpr int SHARED = INTEREST_SOFTMAX_SHARED;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int user_tile = place.block_x, part = place.block_y;
    User users[2];
    for (int slot = 0; slot < 2; ++slot) users[slot] = x.user(x.user_of(user_tile, own_group(slot, place)));
    float shift[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    const auto add_exponentials = [&](int tile, int, Scores& scores, const GeneralScores& general, const char*,
                                      const char*) {
      float found[2][2];  // [half][slot]
      CMI_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int candidate = tile * TILE + score_row(half * 2, place);
        best_interests(found[half], x.groups, place,
                       [&](int group, int column) { return scores[group][half * 2 + column]; });
        CMI_FAST_UNROLL
        for (int slot = 0; slot < 2; ++slot) {
          float& score = found[half][slot];
          score = x.counts(users[slot], candidate) ? x.score(score, general[half * 2 + slot], candidate) : -INFINITY;
        }
      }
      CMI_FAST_UNROLL
      for (int slot = 0; slot < 2; ++slot) {
        const float raised = max_or_nan(shift[slot], max_or_nan(found[0][slot], found[1][slot]));
        const float finite = raised == -INFINITY ? 0 : raised;
        total[slot] = total[slot] * fast_exp2(shift[slot] - finite) + fast_exp2(found[0][slot] - finite) +
                      fast_exp2(found[1][slot] - finite);
        shift[slot] = raised;
      }
    };
    sweep_scores<T, false>(x, user_tile, parts.first(part), parts.last(part), x.candidates.chunks() - 1, shared, place,
                           add_exponentials);
    float* const of_warps = reinterpret_cast<float*>(shared);  // [WARPS, GROUPS]
    CMI_FAST_UNROLL
    for (int slot = 0; slot < 2; ++slot) {
      float top = shift[slot];
      for (int mask = 4; mask < LANES; mask *= 2) top = max_or_nan(top, shuffle_xor(top, mask));
      const float finite = top == -INFINITY ? 0 : top;
      const float sum = sum_over_rows(total[slot] * fast_exp2(shift[slot] - finite));
      if (place.lane() < 4)
        of_warps[place.warp() * GROUPS + own_group(slot, place)] = sum == 0 ? -INFINITY : finite + log2f(sum);
    }
    sync_threads();
    const int group = place.thread, user = x.user_of(user_tile, group);
    if (group >= GROUPS || group % x.groups != 0 || user >= x.users) return;
    log_sums[int64_t(part) * x.users + user] =
        add_log_sums(WARPS, [&](int warp) { return of_warps[warp * GROUPS + group]; });
  }

  // The logarithm of the sum of what `count` ones are logarithms of, in their order.
  template <class At>
  CMI_FAST_DEVICE static float add_log_sums(int count, const At& at) {
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < count; ++i) top = max_or_nan(top, at(i));
    if (top == -INFINITY) return top;
    for (int i = 0; i < count; ++i) sum += exp2f(at(i) - top);
    return top + log2f(sum);
  }
};

// Turns scores into the loss' derivatives by them: that of a pair where the interest is the user's best for the
// candidate, else zero. of_pairs [half][slot] gets those of the pairs that this lane deals with.
template <class T>
CMI_FAST_DEVICE void differentiate(const InterestSoftmax<T>& x, const User (&users)[2], int tile, Scores& scores,
                                   const GeneralScores& general, float (&of_pairs)[2][2], Place place) {
  const auto column_of = [&](int group, int column) {
    return float(score_column(group, column, place) & (x.padded() - 1));
  };
  CMI_FAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int candidate = tile * TILE + score_row(half * 2, place);
    Best best[2];
    best_interests(best, x.groups, place, [&](int group, int column) {
      return Best{scores[group][half * 2 + column], column_of(group, column)};
    });
    CMI_FAST_UNROLL
    for (int slot = 0; slot < 2; ++slot) {
      const User& user = users[slot];
      float derivative = 0;
      if (candidate == user.target)
        derivative = -user.weight;
      else if (x.counts(user, candidate))
        derivative =
            user.weight * fast_exp2(x.score(best[slot].score, general[half * 2 + slot], candidate) - user.log_sum);
      of_pairs[half][slot] = derivative;
      Best all[4];
      gather_from_lanes(Best{derivative, best[slot].column}, all, place);
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) CMI_FAST_UNROLL
      for (int column = 0; column < 2; ++column) {
        float& score = scores[slot * 4 + i][half * 2 + column];
        score = all[i].column == column_of(slot * 4 + i, column) ? all[i].score : 0;
      }
    }
  }
}

// sums += weights^T [64, 64] tile [64, depth]: rows are the weights' columns. They go through the tile `exchange`, half
// of the candidates at a time, of half types as what rounding leaves and what it takes.
template <class T>
CMI_FAST_DEVICE void add_weighted_candidates(Sums<T>& sums, const Scores& weights, const char* tile, int depth,
                                             char* exchange, Place place) {
  constexpr int rows = TILE / 2;
  const int lane = place.lane();
  for (int half = 0; half < 2; ++half) {
    if (place.warp() / 2 == half) {
      CMI_FAST_UNROLL
      for (int i = 0; i < GROUPS; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 4; ++element) {
          T* const to = reinterpret_cast<T*>(exchange + score_column(i, element, place) * ROW_BYTES) +
                        score_row(element, place) - half * rows;
          narrow(weights[i][element], to);
          if constexpr (sizeof(T) == 2) narrow(weights[i][element] - widen(*to), to + rows);
        }
      }
    }
    sync_threads();
    if constexpr (sizeof(T) == 4) {
      const int row = score_row(0, place);
      add_float_products(sums, tile_row<T>(exchange, row), tile_row<T>(exchange, row + 8), rows, tile, half * rows,
                         depth, place);
    } else {
      for (int k = 0; k < rows; k += 16) {
        const T* const row = tile_row<T>(exchange, place.warp() * 16 + lane % 16) + k + lane / 16 * 8;
        uint32_t a[4], rest[4];
        load_matrices(a, row);
        load_matrices(rest, row + rows);
        add_half_products<T, true>(sums, a, rest, tile, half * rows + k, depth, place);
      }
    }
    sync_threads();
  }
}

// To sums [parts, users, m, d], one chunk: the derivatives by an interest's scores times the candidates.
template <class T>
struct InterestSums {
  InterestSoftmax<T> x;
  Parts parts;  // of the tiles of candidates
  float* to;
  static constexpr int SHARED = INTEREST_SOFTMAX_SHARED, BLOCKS_OF_AN_SM = 2;

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int user_tile = place.block_x, chunk = place.block_y, part = place.block_z;
    const int depth = x.candidates.depth(chunk);
    User users[2];
    for (int slot = 0; slot < 2; ++slot) users[slot] = x.user(x.user_of(user_tile, own_group(slot, place)));
    Sums<T> sums = {};
    const auto add_tile = [&](int tile, int, Scores& scores, const GeneralScores& general, const char* candidates,
                              const char*) {
      float of_pairs[2][2];
      differentiate(x, users, tile, scores, general, of_pairs, place);
      add_weighted_candidates<T>(sums, scores, candidates, depth, shared + 2 * STAGE_BYTES, place);
    };
    sweep_scores<T, false>(x, user_tile, parts.first(part), parts.last(part), chunk, shared, place, add_tile);
    CMI_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t row = int64_t(user_tile) * TILE + score_row(half * 2, place);
      const int64_t user = row / x.padded(), k = row % x.padded();
      if (user >= x.users || k >= x.m) continue;
      float* const of_row = to + ((int64_t(part) * x.users + user) * x.m + k) * x.d;
      CMI_FAST_UNROLL
      for (int i = 0; i < CHUNK<T> / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 2; ++element) {
          const int dimension = chunk * CHUNK<T> + score_column(i, element, place);
          if (dimension < x.d) of_row[dimension] = sums[i][half * 2 + element];
        }
      }
    }
  }
};

// sums += weights [16, 8] general [8, depth], of a lane's weights [half][slot].
template <class T>
CMI_FAST_DEVICE void add_weighted_general(Sums<T>& sums, const float (&weights)[2][2], const char* general, int depth,
                                          char* exchange, Place place) {
  const int lane = place.lane();
  if constexpr (sizeof(T) == 4) {
    float* const own = reinterpret_cast<float*>(exchange) + place.warp() * 16 * GROUPS;
    CMI_FAST_UNROLL
    for (int element = 0; element < 4; ++element)
      own[(lane / 4 + element / 2 * 8) * GROUPS + score_column(0, element, place)] = weights[element / 2][element % 2];
    sync_warp();
    add_float_products(sums, own + lane / 4 * GROUPS, own + (lane / 4 + 8) * GROUPS, GROUPS, general, 0, depth, place);
    sync_warp();
  } else {
    uint32_t a[4] = {}, rest[4] = {};  // half of the product's depth of 16 is empty
    CMI_FAST_UNROLL
    for (int half = 0; half < 2; ++half)
      pack_in_two<T, true>(weights[half][0], weights[half][1], &a[half], &rest[half]);
    CMI_FAST_UNROLL
    for (int i = 0; i < CHUNK<T> / 8; i += 4) {
      if (i * 8 >= depth) break;
      uint32_t b[4];
      load_transposed(b, tile_row<T>(general, lane % 8) + (i + lane / 8) * 8);
      CMI_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        if ((i + j) * 8 >= depth) break;
        multiply_add(T(), sums[i + j], a, b[j], 0);
        multiply_add(T(), sums[i + j], rest, b[j], 0);
      }
    }
  }
}

// To sums [parts, count, d], one chunk, and bias_sums [parts, count], if given: the derivatives by a candidate's scores
// times the users' interests, divided by what `scaled` says.
template <class T>
struct CandidateSums {
  InterestSoftmax<T> x;
  Parts parts;  // of the tiles of users
  float *to, *bias_sums;
  static constexpr int SHARED = INTEREST_SOFTMAX_SHARED, BLOCKS_OF_AN_SM = 2;

  // The larger factor of 1/t for interests and 1 for general ones: without it weights stay within those of the pairs.
  CMI_FAST_DEVICE static float scaled(float t) { return t < 1 ? 1 / t : 1; }

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int candidate_tile = place.block_x, chunk = place.block_y, part = place.block_z;
    const int depth = x.candidates.depth(chunk);
    const float of_interests = 1 / x.t() / scaled(x.t()), of_general = 1 / scaled(x.t());
    char* const exchange = shared + 2 * STAGE_BYTES;
    Sums<T> sums = {};
    float bias[2] = {0, 0};
    const auto add_tile = [&](int, int user_tile, Scores& scores, const GeneralScores& general, const char*,
                              const char* rows) {
      User users[2];
      float of_pairs[2][2];
      CMI_FAST_UNROLL
      for (int slot = 0; slot < 2; ++slot) users[slot] = x.user(x.user_of(user_tile, own_group(slot, place)));
      differentiate(x, users, candidate_tile, scores, general, of_pairs, place);
      CMI_FAST_UNROLL
      for (int i = 0; i < GROUPS; ++i) CMI_FAST_UNROLL
      for (int element = 0; element < 4; ++element) scores[i][element] *= of_interests;
      if constexpr (sizeof(T) == 4)
        add_weighted_floats(sums, scores, rows, depth, exchange, place);
      else
        add_weighted_halves<T, true>(sums, scores, rows, depth, place);
      CMI_FAST_UNROLL
      for (int half = 0; half < 2; ++half) {
        CMI_FAST_UNROLL
        for (int slot = 0; slot < 2; ++slot) {
          const bool first = own_group(slot, place) % x.groups == 0;  // the user's other groups repeat it
          bias[half] += first ? of_pairs[half][slot] : 0;
          of_pairs[half][slot] = first ? of_pairs[half][slot] * of_general : 0;
        }
      }
      if (x.general.rows) add_weighted_general<T>(sums, of_pairs, rows + TILE_BYTES, depth, exchange, place);
    };
    sweep_scores<T, true>(x, candidate_tile, parts.first(part), parts.last(part), chunk, shared, place, add_tile);
    CMI_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int candidate = candidate_tile * TILE + score_row(half * 2, place);
      const float of_bias = sum_over_columns(bias[half]);
      if (candidate >= x.count) continue;
      const int64_t row = int64_t(part) * x.count + candidate;
      if (bias_sums && chunk == 0 && place.lane() % 4 == 0) bias_sums[row] = of_bias;
      CMI_FAST_UNROLL
      for (int i = 0; i < CHUNK<T> / 8; ++i) {
        CMI_FAST_UNROLL
        for (int element = 0; element < 2; ++element) {
          const int dimension = chunk * CHUNK<T> + score_column(i, element, place);
          if (dimension < x.d) to[row * x.d + dimension] = sums[i][half * 2 + element];
        }
      }
    }
  }
};

}  // namespace cmi_fast::cuda
