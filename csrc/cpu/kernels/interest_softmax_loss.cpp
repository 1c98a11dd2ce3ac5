// Eq. 7 by tiles of candidates: m dot products a pair of user and candidate, of which only the largest is kept.
//
// max_k (u_k . v / t) + u_g . v = max_k q_k . v with the queries q_k = u_k / t + u_g. With the score s_bc of user b and
// candidate c, its bias included, and L_b = log sum_{c not the target} e^(s_bc), the loss is
//   l_b = softplus(x_b),  x_b = L_b - s_{b, target}.
// With w_b its cotangent, sigma = sigmoid(x_b), the share of all but the target, and lse_b = L_b + softplus(-x_b),
//   g_bc = dl/ds_bc = w_b e^(s_bc - lse_b),   g_{b, target} = -w_b sigma,
// and the pair's best interest k takes all of it: dq_bk += g_bc v_c, dv_c += g_bc q_bk, dbias_c += g_bc. Then
//   du_k = dq_k / t,   du_g = sum_k dq_k,   dt = -sum_k u_k . du_k / t.
#include "cpu/kernels/interest_softmax_loss.h"

#include "cpu/kernels/chosen_rows.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

constexpr int64_t TILE = CANDIDATE_TILE;
constexpr int ROWS = 4;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2;
constexpr int64_t FEW_INTERESTS = 16;  // so few that several of a tile's candidates have the same best one
constexpr int64_t STRIP_ROWS = 64;     // queries at a time: with their scores and a tile of candidates they fit in L1

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Loops {
  using V = Vector<T, WIDE>;
  using Bits = Vector<typename Float<T>::Bits, WIDE>;
  using Problem = InterestSoftmaxLoss<T>;
  using Outputs = InterestSoftmaxLossOutputs<T>;
  using Gradients = InterestSoftmaxLossGradients<T>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  using Bytes = Vector<uint8_t, LANES>;
  static constexpr T LOWEST = Float<T>::LOWEST, INFINITE = T(__builtin_inf());

  static int64_t padded(int64_t d) { return round_up(d, LANES); }
  static int64_t tiles_of(int64_t count) { return round_up(count, TILE) / TILE; }
  static T* query(const Problem& p, int64_t user) { return p.queries + user * p.m * padded(p.d); }
  static int64_t pair(const Problem& p, int64_t tile, int64_t user) { return (tile * p.users + user) * TILE; }

  // As many users as STRIP_ROWS hold, and at least so many that their queries fill the product's tiles.
  static int64_t strip(int64_t m) {
    int64_t users = 1;
    while (users * m % ROWS) ++users;
    while (2 * users * m <= STRIP_ROWS) users *= 2;
    return users;
  }

  // Users whose weights the backward holds at a time. Some, that a candidate's gradient stays in registers meanwhile.
  static int64_t weighed(int64_t m) { return greater(strip(m), 8); }

  static typename InterestSoftmaxLossKernel<T>::Sizes sizes(int64_t users, int64_t m, int64_t count, int64_t d) {
    const int64_t tiles = tiles_of(count), wide = padded(d), rows = strip(m) * m;
    const int64_t scores = rows * TILE, dq = (rows + 2) * wide, dv = TILE * (1 + wide);
    const int64_t backward = weighed(m) * TILE + greater(dq, dv);
    return {tiles,
            strip(m),
            round_up(users * m, ROWS) * wide,
            tiles * d * TILE,
            tiles * TILE * wide,
            round_up(greater(scores, backward), 16)};
  }

  static void pack_queries(const Problem& p, int64_t begin, int64_t end, T* workspace) {
    const int64_t d = p.d, wide = padded(d), rows = p.users * p.m;
    for (int64_t user = begin; user < end; ++user) {
      const T* const general = p.general.data ? read_row(p.general, user, d, workspace) : nullptr;
      for (int64_t k = 0; k < p.m; ++k) {
        T* const to = query(p, user) + k * wide;
        const T* const from = read_row(p.interests, user * p.m + k, d, to);
        for (int64_t j = 0; j < d; ++j) to[j] = from[j] * p.inverse_temperature;
        if (general) add(general, d, to);
        set_zero(to + d, wide - d);
      }
    }
    if (end == p.users) set_zero(p.queries + rows * wide, (round_up(rows, ROWS) - rows) * wide);
  }

  static void pack_columns(const Problem& p, int64_t begin, int64_t end, T* workspace) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * TILE, count = smaller(p.count - first, TILE);
      T *const to = p.columns + first * p.d, *const biases = p.biases + first;
      set_zero(biases, TILE);
      for (int64_t c = 0; c < count; ++c) {
        const T* const row = read_row(p.candidates, first + c, p.d, workspace);
        for (int64_t j = 0; j < p.d; ++j) to[j * TILE + c] = row[j];
        if (p.bias.data) biases[c] = *read_row(p.bias, first + c, 1, workspace);
      }
      for (int64_t j = 0; j < p.d; ++j) set_zero(to + j * TILE + count, TILE - count);
    }
  }

  static void pack_rows(const Problem& p, int64_t begin, int64_t end) {
    const int64_t wide = padded(p.d);
    for (int64_t c = begin * TILE; c < end * TILE; ++c) {
      T* const to = p.rows + c * wide;
      set_zero(to, wide);
      if (c >= p.count) continue;
      const T* const from = read_row(p.candidates, c, p.d, to);
      if (from != to) copy(from, p.d, to);
    }
  }

  // scores [TILE] = the largest of each column of [m, TILE], and best [TILE] which row that is: the first of equals.
  static void best_of(const T* rows, int64_t m, T* scores, uint8_t* best) {
    constexpr int COUNT = 4;  // vectors at a time: their chains of comparisons overlap
    for (int64_t c = 0; c < TILE; c += COUNT * LANES) {
      V top[COUNT], sum[COUNT];
      Bits index[COUNT];
#pragma GCC unroll 4
      for (int v = 0; v < COUNT; ++v) {
        top[v] = sum[v] = load<V>(rows + c + v * LANES);
        index[v] = Bits{};
      }
      for (int64_t k = 1; k < m; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; ++v) {
          const V score = load<V>(rows + k * TILE + c + v * LANES);
          sum[v] += score;
          index[v] = score > top[v] ? Bits{} + typename Float<T>::Bits(k) : index[v];
          top[v] = score > top[v] ? score : top[v];
        }
#pragma GCC unroll 4
      for (int v = 0; v < COUNT; ++v) {
        // No comparison finds a NaN, but the sum has it, too. (Infinities of both signs are NaN in the loss anyhow.)
        store(scores + c + v * LANES, sum[v] == sum[v] ? top[v] : sum[v]);
        store(best + c + v * LANES, __builtin_convertvector(index[v], Bytes));
      }
    }
  }

  // Adds the biases, and removes what the user's softmax over the non-targets does not see.
  static void mask(const Problem& p, int64_t user, int64_t tile, T* scores) {
    const int64_t first = tile * TILE, count = smaller(p.count - first, TILE), target = p.targets[user];
    add(p.biases + first, TILE, scores);
    for (int64_t c = count; c < TILE; ++c) scores[c] = -INFINITE;
    const bool own = target >= first && target < first + count;
    if (own) p.target_scores[user] = scores[target - first];
    if (p.exclude) {
      const bool* const exclude = p.exclude + user * p.count + first;
      for (int64_t c = 0; c < count; ++c) scores[c] = exclude[c] ? -INFINITE : scores[c];
    }
    if (p.ids) {
      const int64_t item = p.ids[target];
      for (int64_t c = 0; c < count; ++c) scores[c] = p.ids[first + c] == item ? -INFINITE : scores[c];
    }
    if (own) scores[target - first] = -INFINITE;
  }

  // Scores to e^(score - maximum). The maximum is at least the lowest number: a tile without candidates has none.
  static void exponentiate(T* scores, T* maximum, T* sum) {
    constexpr int COUNT = 4;
    V top = V{} + LOWEST, total{};
    for (int64_t c = 0; c < TILE; c += LANES) top = larger(top, load<V>(scores + c));
    top = reduce_lanes<T, WIDE>(top, larger<V>);
    for (int64_t c = 0; c < TILE; c += COUNT * LANES) {
      V e[COUNT];
#pragma GCC unroll 4
      for (int v = 0; v < COUNT; ++v) e[v] = (load<V>(scores + c + v * LANES) - top) * T(LOG2_E);
      exp2_nonpositive<T, WIDE>(e);
#pragma GCC unroll 4
      for (int v = 0; v < COUNT; ++v) {
        store(scores + c + v * LANES, e[v]);
        total += e[v];
      }
    }
    *maximum = top[0];
    *sum = sum_lanes<T, WIDE>(total)[0];
  }

  static void score(const Problem& p, const Outputs& outputs, int64_t user_begin, int64_t user_end, int64_t tile_begin,
                    int64_t tile_end, T* workspace) {
    const int64_t wide = padded(p.d), step = strip(p.m), tiles = tiles_of(p.count);
    for (int64_t tile = tile_begin; tile < tile_end; ++tile)
      for (int64_t first = user_begin; first < user_end; first += step) {
        const int64_t users = smaller(step, user_end - first);
        product<V, ROWS, VECTORS>(round_up(users * p.m, ROWS), TILE, p.d, Scalars<T>{query(p, first), wide, 1},
                                  p.columns + tile * TILE * p.d, TILE, workspace, TILE, false);
        for (int64_t user = first; user < first + users; ++user) {
          T* const scores = outputs.exponentials + pair(p, tile, user);
          best_of(workspace + (user - first) * p.m * TILE, p.m, scores, outputs.best + pair(p, tile, user));
          mask(p, user, tile, scores);
          exponentiate(scores, outputs.scales + user * tiles + tile, p.sums + user * tiles + tile);
        }
      }
  }

  static void finish_losses(const Problem& p, const Outputs& outputs, int64_t begin, int64_t end) {
    const int64_t tiles = tiles_of(p.count);
    for (int64_t user = begin; user < end; ++user) {
      T* const scales = outputs.scales + user * tiles;
      const T* const sums = p.sums + user * tiles;
      T top = LOWEST;
      for (int64_t tile = 0; tile < tiles; ++tile) top = larger(top, scales[tile]);
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        scales[tile] = T(__builtin_exp(double(scales[tile]) - double(top)));
        sum += double(scales[tile]) * sums[tile];
      }
      // Without any candidate but the target x = -inf, and both the loss and all shares are 0.
      const double x = double(top) - double(p.target_scores[user]) + __builtin_log(sum);
      outputs.losses[user] = T(x > 0 ? x + __builtin_log1p(__builtin_exp(-x)) : __builtin_log1p(__builtin_exp(x)));
      const double miss = 1 / (1 + __builtin_exp(-x));
      outputs.misses[user] = T(miss);
      const T inverse = sum == 0 ? T(0) : T(miss / sum);
      for (int64_t tile = 0; tile < tiles; ++tile) scales[tile] *= inverse;
    }
  }

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

  static constexpr InterestSoftmaxLossKernel<T> KERNEL{sizes, pack_queries,  pack_columns,   pack_rows,
                                                       score, finish_losses, user_gradients, candidate_gradients};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const InterestSoftmaxLossKernels interest_softmax_loss;
const InterestSoftmaxLossKernels interest_softmax_loss{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
