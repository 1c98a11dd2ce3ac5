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

#include "cpu/kernels/interest_softmax_backward.h"
#include "cpu/kernels/interest_softmax_layout.h"

namespace cmi_fast {
namespace {

template <class T>
struct Loops : InterestSoftmaxLayout<T> {
  using Layout = InterestSoftmaxLayout<T>;
  using Backward = InterestSoftmaxBackward<T>;
  using Layout::INFINITE;
  using Layout::LANES;
  using Layout::LOWEST;
  using Layout::padded;
  using Layout::pair;
  using Layout::query;
  using Layout::strip;
  using Layout::tiles_of;
  using typename Layout::Bits;
  using typename Layout::Bytes;
  using typename Layout::Outputs;
  using typename Layout::Problem;
  using typename Layout::V;

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

  // Flattened, as GCC would leave the product's tiles calls of a function: a fifteenth of the time.
  __attribute__((flatten)) static void score(const Problem& p, const Outputs& outputs, int64_t user_begin,
                                             int64_t user_end, int64_t tile_begin, int64_t tile_end, T* workspace) {
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

  static constexpr InterestSoftmaxLossKernel<T> KERNEL{Layout::sizes,
                                                       pack_queries,
                                                       pack_columns,
                                                       pack_rows,
                                                       score,
                                                       finish_losses,
                                                       Backward::user_gradients,
                                                       Backward::candidate_gradients};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const InterestSoftmaxLossKernels interest_softmax_loss;
const InterestSoftmaxLossKernels interest_softmax_loss{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
