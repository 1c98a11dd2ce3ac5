// Eq. 6 by symmetric tiles: the score of a pair of rows serves both as anchors, and no n x n matrix exists.
//
// Anchor i with positive p and negatives j loses l_i = softplus(L_i - s_ip), L_i = log sum_j e^(s_ij). With
// sigma_i = sigmoid(L_i - s_ip) and w_i the cotangent of l_i,
//   dl/ds_ij = w_i sigma_i e^(s_ij - L_i) for negatives,   dl/ds_ip = -w_i sigma_i.
// As s is symmetric, a pair's gradient is G_ij = e^(s_ij) (b_i e^(-L_i) + b_j e^(-L_j)) with b_i = w_i sigma_i, and
//   dz_i = (sum_j G_ij z_j - (b_i + b_p) z_p) / t.
// G is symmetric too: one tile of it adds to the gradients of its rows and of its columns. Unit rows bound s by 1 / t,
// a shift that all anchors can share while e^(-2/t) is a normal number; otherwise each keeps a running maximum.
#include "cpu/kernels/nt_xent_loss.h"

#include "cpu/kernels/exp2_bounded.h"
#include "cpu/kernels/nt_xent_panels.h"
#include "cpu/kernels/nt_xent_tile.h"

namespace cmi_fast {
namespace {

template <class T>
struct Loops {
  using C = Compute<T>;
  using V = Vector<C, WIDE>;
  using Problem = NtXentLoss<T>;
  using Panels = typename PanelsOf<T>::type;
  using Tile = NtXentTile<T>;
  static constexpr int LANES = VectorOf<C, WIDE>::LANES;
  static constexpr int STEP = REGISTERS == 32 ? 4 : 2;  // vectors whose exponentials are taken together
  static constexpr C LOWEST = Float<C>::LOWEST;

  // What row i of the panels lacks.
  static C factor(const Problem& p, int64_t i) { return Panels::FACTORS ? p.factors[i] : C(1); }
  static C shift(const Problem& p) { return p.inverse_temperature * C(LOG2_E); }

  static typename NtXentLossKernel<T>::Sizes sizes(int64_t pairs, int64_t d) {
    const int64_t tiles = round_up(2 * pairs, TILE) / TILE;
    return {tiles, tiles * Panels::size(d), tiles * TILE * Panels::width(d), tiles * TILE, 2 * TILE * TILE};
  }

  static void pack(const Problem& p, int64_t begin, int64_t end) {
    const int64_t wide = Panels::width(p.d);
    for (int64_t tile = begin; tile < end; ++tile) {
      Panels::pack(p, tile);
      if (p.gradient) set_zero(p.gradient + tile * TILE * wide, TILE * wide);
      for (int64_t i = tile * TILE; i < (tile + 1) * TILE; ++i) {
        p.sums[i] = 0;
        if (p.slopes) p.slopes[i] = 0;
        p.maxima[i] = LOWEST;
        p.weights[i] = p.scaled_weights[i] = 0;
      }
    }
  }

  template <class Visit>
  static void for_each_tile(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                            const Visit& visit) {
    for (int64_t a = a_begin; a < a_end; ++a)
      for (int64_t b = a_begin == b_begin ? a : b_begin; b < b_end; ++b) {
        const Tile tile{a * TILE, b * TILE};
        if (!tile.empty(p)) visit(tile);
      }
  }

  // The products of a tile's rows [TILE, TILE], row by row while L1 holds them: visit(i, products [TILE]).
  template <class Visit>
  static void for_each_row(const Problem& p, const Tile& tile, C* products, const Visit& visit) {
    Panels::products(p, tile.row / TILE, tile.column / TILE, products, [&](int64_t row) {
      for (int64_t i = row; i < row + ROWS; ++i) visit(i, products + i * TILE);
    });
  }

  // The scores of row i from column j on, less the shift that all anchors share.
  static void exponents(const Problem& p, const Tile& tile, int64_t i, int64_t j, const C* products, V (&x)[STEP]) {
    const C top = p.running ? C(0) : shift(p);
    const C row_factor = factor(p, tile.row + i) * shift(p);
    const C* const column_factor = p.factors + tile.column + j;
#pragma GCC unroll 16
    for (int v = 0; v < STEP; ++v) {
      x[v] = load<V>(products + j + v * LANES);
      if (Panels::FACTORS) x[v] *= load<V>(column_factor + v * LANES);
      x[v] = Panels::FACTORS ? x[v] * row_factor - top : x[v] - top;
    }
  }

  // row_sums [TILE, LANES] sum what the rows' own sums are the sums of lanes of.
  static void add_shifted(const Problem& p, const Tile& tile, C* products, C* row_sums) {
    const bool full = tile.full(p);
    V columns[TILE / LANES] = {};
    for_each_row(p, tile, products, [&](int64_t i, C* scores) {
      V row = load<V>(row_sums + i * LANES);
#pragma GCC unroll 16
      for (int64_t j = 0; j < TILE; j += STEP * LANES) {
        V e[STEP];
        exponents(p, tile, i, j, scores, e);
        exp2_bounded<C, WIDE>(e);
        if (!full) tile.mask(p, i, j, C(0), e);
#pragma GCC unroll 16
        for (int v = 0; v < STEP; ++v) {
          row += e[v];
          columns[j / LANES + v] += e[v];
        }
      }
      store(row_sums + i * LANES, row);
    });
    if (tile.diagonal()) return;
    C sums[TILE];
    copy((const C*)columns, TILE, sums);
    for (int64_t j = 0; j < TILE; ++j) p.sums[tile.column + j] += sums[j];
  }

  // Adds sum_k 2^(scores[k] - maximum) to an anchor's sum after raising its maximum to that of the new scores.
  static void add_running(C* maximum, double* sum, const C* scores) {
    V top = V{} + *maximum;
    for (int64_t k = 0; k < TILE; k += LANES) top = larger(top, load<V>(scores + k));
    C highest = *maximum;
    for (int lane = 0; lane < LANES; ++lane)
      highest = top[lane] > highest || top[lane] != top[lane] ? top[lane] : highest;
    if (highest == LOWEST) return;  // no negatives yet
    V added{};
    for (int64_t k = 0; k < TILE; k += LANES) added += exp2_nonpositive<C, WIDE>(load<V>(scores + k) - highest);
    *sum = *sum * __builtin_exp2(double(*maximum) - double(highest)) + sum_lanes<C, WIDE>(added)[0];
    *maximum = highest;
  }

  static void add_running(const Problem& p, const Tile& tile, C* workspace) {
    const bool full = tile.full(p);
    for_each_row(p, tile, workspace, [&](int64_t i, C* scores) {
      for (int64_t j = 0; j < TILE; j += STEP * LANES) {
        V s[STEP];
        exponents(p, tile, i, j, scores, s);
        if (!full) tile.mask(p, i, j, LOWEST, s);
        for (int v = 0; v < STEP; ++v) store(scores + j + v * LANES, s[v]);
      }
      add_running(p.maxima + tile.row + i, p.sums + tile.row + i, scores);
    });
    if (tile.diagonal()) return;
    C* const columns = workspace + TILE * TILE;
    transpose(workspace, TILE, TILE, columns);
    for (int64_t j = 0; j < TILE; ++j)
      add_running(p.maxima + tile.column + j, p.sums + tile.column + j, columns + j * TILE);
  }

  static void add_sums(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end, C* workspace) {
    if (p.running) {
      for_each_tile(p, a_begin, a_end, b_begin, b_end, [&](const Tile& tile) { add_running(p, tile, workspace); });
      return;
    }
    C* const row_sums = workspace + TILE * TILE;
    for (int64_t a = a_begin; a < a_end; ++a) {
      set_zero(row_sums, TILE * LANES);
      for_each_tile(p, a, a + 1, a_begin == b_begin ? a : b_begin, b_end,
                    [&](const Tile& tile) { add_shifted(p, tile, workspace, row_sums); });
      for (int64_t i = 0; i < TILE; ++i) p.sums[a * TILE + i] += sum_lanes<C, WIDE>(load<V>(row_sums + i * LANES))[0];
    }
  }

  template <class A, class B>
  static C dot(const A& a, const B& b, int64_t d) {
    C sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) sum += a[j] * b[j];
    return sum;
  }

  // L_i - s_ip in natural units.
  static double margin(const Problem& p, int64_t i, C log_sum) {
    const C positive = dot(Panels::row(p, i), Panels::row(p, p.partner(i)), p.d);
    return LN_2 * log_sum - double(positive) * p.inverse_temperature;
  }

  static void finish_losses(const Problem& p, int64_t begin, int64_t end, C* losses, C* log_sum) {
    for (int64_t i = begin; i < end; ++i) {
      log_sum[i] = C(__builtin_log2(p.sums[i]) + (p.running ? p.maxima[i] : shift(p)));
      if (!p.both && i >= p.pairs) continue;
      const double x = margin(p, i, log_sum[i]);
      losses[i] = C(x > 0 ? x + __builtin_log1p(__builtin_exp(-x)) : __builtin_log1p(__builtin_exp(x)));
    }
  }

  // The weights b_i and, with a shared shift, b_i / sum; with a running maximum L_i in its place. Without negatives
  // both make G zero.
  static void start_gradient(const Problem& p, int64_t begin, int64_t end, const C* losses_grad, const C* log_sum) {
    for (int64_t i = begin; i < end; ++i) {
      const bool anchor = i < (p.both ? 2 * p.pairs : p.pairs);
      const bool negatives = anchor && log_sum[i] != -__builtin_inf();
      const double sigma = negatives ? 1 / (1 + __builtin_exp(-margin(p, i, log_sum[i]))) : 0;
      p.weights[i] = anchor ? C(losses_grad[i] * sigma) : C(0);
      if (p.running)
        p.scaled_weights[i] = negatives ? log_sum[i] : -LOWEST;
      else
        p.scaled_weights[i] =
            negatives ? C(p.weights[i] * __builtin_exp2(double(shift(p)) - log_sum[i])) * factor(p, i) : C(0);
    }
  }

  // G of a tile, times the factors of both rows where panels lack them. Panels that round G leave its sum with the
  // scores to be taken here, for the temperature's gradient: a difference of large numbers.
  static void pair_gradients(const Problem& p, const Tile& tile, C* workspace) {
    const bool full = tile.full(p), slopes = Panels::FACTORS && p.slopes;
    V slope{};
    for_each_row(p, tile, workspace, [&](int64_t i, C* scores) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < TILE; j += STEP * LANES) {
        V g[STEP];
        exponents(p, tile, i, j, scores, g);
        if (p.running)
          weigh_running(p, tile, i, j, g);
        else
          weigh_shifted(p, tile, i, j, g);
        if (!full) tile.mask(p, i, j, C(0), g);
#pragma GCC unroll 16
        for (int v = 0; v < STEP; ++v) {
          C* const score = scores + j + v * LANES;
          if (slopes) slope += g[v] * load<V>(score);
          store(score, g[v]);
        }
      }
    });
    // A tile on the diagonal holds every pair twice.
    if (slopes) p.slopes[tile.row] += sum_lanes<C, WIDE>(slope)[0] * (tile.diagonal() ? 0.5 : 1);
  }

  // From exponents to G.
  static void weigh_shifted(const Problem& p, const Tile& tile, int64_t i, int64_t j, V (&g)[STEP]) {
    const C row_scaled = p.scaled_weights[tile.row + i], row_factor = factor(p, tile.row + i);
    const C *const scaled = p.scaled_weights + tile.column + j, *const factor = p.factors + tile.column + j;
    exp2_bounded<C, WIDE>(g);
#pragma GCC unroll 16
    for (int v = 0; v < STEP; ++v) {
      const V column_scaled = load<V>(scaled + v * LANES);
      if (Panels::FACTORS)
        g[v] *= row_scaled * load<V>(factor + v * LANES) + column_scaled * row_factor;
      else
        g[v] *= row_scaled + column_scaled;
    }
  }

  static void weigh_running(const Problem& p, const Tile& tile, int64_t i, int64_t j, V (&g)[STEP]) {
    for (int v = 0; v < STEP; ++v) {
      const int64_t row = tile.row + i, column = tile.column + j + v * LANES;
      g[v] = p.weights[row] * exp2_nonpositive<C, WIDE>(g[v] - p.scaled_weights[row]) +
             load<V>(p.weights + column) * exp2_nonpositive<C, WIDE>(g[v] - load<V>(p.scaled_weights + column));
      if (Panels::FACTORS) g[v] *= p.factors[row] * load<V>(p.factors + column);
    }
  }

  static void add_gradient(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                           C* workspace) {
    for_each_tile(p, a_begin, a_end, b_begin, b_end, [&](const Tile& tile) {
      pair_gradients(p, tile, workspace);
      Panels::add_gradient(p, tile.row / TILE, tile.column / TILE, workspace, workspace + TILE * TILE);
    });
  }

  static double finish_gradient(const Problem& p, int64_t begin, int64_t end, T* first, T* second) {
    const int64_t d = p.d;
    double temperature = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t positive = p.partner(i);
      const C weight = p.weights[i] + p.weights[positive];
      C* const dz = p.gradient + i * Panels::width(d);
      const auto z = Panels::row(p, i), other = Panels::row(p, positive);
      const C unscale = factor(p, i) == 0 ? C(0) : 1 / factor(p, i);
      for (int64_t j = 0; j < d; ++j) dz[j] = (dz[j] * unscale - weight * other[j]) * p.inverse_temperature;
      const C radial = dot(z, dz, d);
      if (Panels::FACTORS && p.slopes)
        temperature -=
            (p.slopes[i] - double(weight) * dot(z, other, d) / 2) * p.inverse_temperature * p.inverse_temperature;
      else
        temperature -= double(radial) * p.inverse_temperature / 2;
      T* const to = i < p.pairs ? (first ? first + i * d : nullptr) : (second ? second + (i - p.pairs) * d : nullptr);
      if (!to) continue;
      if (p.normalize)
        for (int64_t j = 0; j < d; ++j) dz[j] = (dz[j] - z[j] * radial) * p.inverse[i];
      narrow(dz, d, to);
    }
    return temperature;
  }

  static constexpr NtXentLossKernel<T> KERNEL{sizes,         pack,           add_sums,       add_gradient,
                                              finish_losses, start_gradient, finish_gradient};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const NtXentLossKernels nt_xent_loss;
const NtXentLossKernels nt_xent_loss{Loops<float>::KERNEL, Loops<double>::KERNEL, Loops<BFloat16>::KERNEL,
                                     Loops<Half>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
