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

#include "cpu/kernels/product.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

constexpr int64_t TILE = 64;  // rows: the tiles of a step stay in L2, what a product streams in L1
constexpr int ROWS = 4;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Loops {
  using V = Vector<T, WIDE>;
  using Problem = NtXentLoss<T>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  static constexpr T LOWEST = Float<T>::LOWEST;

  static int64_t padded(int64_t d) { return round_up(d, LANES); }
  static int64_t partner(const Problem& p, int64_t i) { return i < p.pairs ? i + p.pairs : i - p.pairs; }
  static T* row(const Problem& p, int64_t i) { return p.rows + i * padded(p.d); }
  static T* tile_columns(const Problem& p, int64_t tile) { return p.columns + tile * TILE * padded(p.d); }
  static T shift(const Problem& p) { return p.inverse_temperature * T(LOG2_E); }

  static typename NtXentLossKernel<T>::Sizes sizes(int64_t pairs, int64_t d) {
    const int64_t tiles = round_up(2 * pairs, TILE) / TILE;
    return {tiles, tiles * TILE * padded(d), tiles * TILE, 2 * TILE * TILE};
  }

  static void pack(const Problem& p, int64_t begin, int64_t end) {
    const int64_t d = p.d, wide = padded(d), n = 2 * p.pairs;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * TILE;
      set_zero(row(p, first), TILE * wide);
      if (p.gradient) set_zero(p.gradient + first * wide, TILE * wide);
      for (int64_t i = first; i < first + TILE; ++i) {
        p.sums[i] = 0;
        p.maxima[i] = LOWEST;
        p.weights[i] = p.scaled_weights[i] = 0;
      }
      for (int64_t i = first; i < smaller(first + TILE, n); ++i) {
        const T* from = i < p.pairs ? p.first + i * d : p.second + (i - p.pairs) * d;
        if (p.normalize)
          unit_row(from, d, wide, row(p, i), p.inverse + i);
        else
          copy(from, d, row(p, i));
      }
      T* const columns = tile_columns(p, tile);
      const T scale = shift(p);
      for (int64_t j = 0; j < wide; ++j)
        for (int64_t i = 0; i < TILE; ++i) columns[j * TILE + i] = row(p, first)[i * wide + j] * scale;
    }
  }

  // What a tile's rows and columns are, and which of its pairs are no negatives of each other.
  struct Tile {
    int64_t row, column;  // their first rows among all

    bool diagonal() const { return row == column; }

    // No anchor of the tile has a negative in it: both sides lie in one view, or no side has anchors.
    bool empty(const Problem& p) const {
      const int64_t row_end = row + TILE, column_end = column + TILE;
      if (!p.both && row >= p.pairs && column >= p.pairs) return true;
      return p.cross_view && ((row_end <= p.pairs && column_end <= p.pairs) || (row >= p.pairs && column >= p.pairs));
    }

    // All pairs of the tile are negatives: it lies off the diagonal, holds no positives, no padding and, where that
    // matters, no two rows of one view.
    bool full(const Problem& p) const {
      const auto meets = [&](int64_t begin) { return begin < column + TILE && column < begin + TILE; };
      if (diagonal() || meets(row + p.pairs) || meets(row - p.pairs) || column + TILE > 2 * p.pairs) return false;
      return !p.cross_view || (row + TILE <= p.pairs && column >= p.pairs);
    }

    // Writes `value` over the pairs that are no negatives: an anchor with itself, with its positive, with padding.
    void mask(const Problem& p, T value, T* tile) const {
      if (full(p)) return;
      const int64_t n = 2 * p.pairs;
      const auto fill = [&](int64_t i, int64_t begin, int64_t end) {
        for (int64_t j = greater(begin - column, 0); j < smaller(end - column, TILE); ++j) tile[i * TILE + j] = value;
      };
      for (int64_t i = 0; i < TILE; ++i) {
        const int64_t anchor = row + i, positive = partner(p, anchor);
        fill(i, n, column + TILE);
        if (anchor >= n) {
          fill(i, column, column + TILE);
        } else if (p.cross_view) {
          anchor < p.pairs ? fill(i, 0, p.pairs) : fill(i, p.pairs, n);
          fill(i, positive, positive + 1);
        } else {
          fill(i, anchor, anchor + 1);
          fill(i, positive, positive + 1);
        }
      }
    }

    void scores(const Problem& p, T* tile) const {
      const int64_t wide = padded(p.d);
      product<V, ROWS, VECTORS>(TILE, TILE, wide, Scalars<T>{Loops::row(p, row), wide, 1},
                                tile_columns(p, column / TILE), TILE, tile, TILE, false);
    }
  };

  template <class Visit>
  static void for_each_tile(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                            const Visit& visit) {
    for (int64_t a = a_begin; a < a_end; ++a)
      for (int64_t b = a_begin == b_begin ? a : b_begin; b < b_end; ++b) {
        const Tile tile{a * TILE, b * TILE};
        if (!tile.empty(p)) visit(tile);
      }
  }

  static T sum_of(const T* values) {
    V sum{};
    for (int64_t j = 0; j < TILE; j += LANES) sum += load<V>(values + j);
    T total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    return total;
  }

  static void add_shifted(const Problem& p, const Tile& tile, T* scores) {
    const V top = V{} + shift(p);
    for (int64_t k = 0; k < TILE * TILE; k += LANES)
      store(scores + k, exp2_nonpositive<T, WIDE>(load<V>(scores + k) - top));
    tile.mask(p, T(0), scores);
    for (int64_t i = 0; i < TILE; ++i) p.sums[tile.row + i] += sum_of(scores + i * TILE);
    if (tile.diagonal()) return;
    for (int64_t j = 0; j < TILE; j += LANES) {
      V sum{};
      for (int64_t i = 0; i < TILE; ++i) sum += load<V>(scores + i * TILE + j);
      for (int lane = 0; lane < LANES; ++lane) p.sums[tile.column + j + lane] += sum[lane];
    }
  }

  // Adds sum_k 2^(scores[k] - maximum) to an anchor's sum after raising its maximum to that of the new scores.
  static void add_running(T* maximum, double* sum, const T* scores) {
    V top = V{} + *maximum;
    for (int64_t k = 0; k < TILE; k += LANES) top = larger(top, load<V>(scores + k));
    T highest = *maximum;
    for (int lane = 0; lane < LANES; ++lane)
      highest = top[lane] > highest || top[lane] != top[lane] ? top[lane] : highest;
    if (highest == LOWEST) return;  // no negatives yet
    V total{};
    for (int64_t k = 0; k < TILE; k += LANES) total += exp2_nonpositive<T, WIDE>(load<V>(scores + k) - highest);
    double added = 0;
    for (int lane = 0; lane < LANES; ++lane) added += total[lane];
    *sum = *sum * __builtin_exp2(double(*maximum) - double(highest)) + added;
    *maximum = highest;
  }

  static void transpose(const T* tile, T* transposed) {
    for (int64_t i = 0; i < TILE; ++i)
      for (int64_t j = 0; j < TILE; ++j) transposed[j * TILE + i] = tile[i * TILE + j];
  }

  static void add_sums(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end, T* workspace) {
    for_each_tile(p, a_begin, a_end, b_begin, b_end, [&](const Tile& tile) {
      tile.scores(p, workspace);
      if (!p.running) return add_shifted(p, tile, workspace);
      tile.mask(p, LOWEST, workspace);
      const auto add = [&](int64_t anchor, const T* scores) {
        for (int64_t i = 0; i < TILE; ++i) add_running(p.maxima + anchor + i, p.sums + anchor + i, scores + i * TILE);
      };
      add(tile.row, workspace);
      if (tile.diagonal()) return;
      transpose(workspace, workspace + TILE * TILE);
      add(tile.column, workspace + TILE * TILE);
    });
  }

  static T dot(const T* a, const T* b, int64_t d) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; ++j) sum += a[j] * b[j];
    return sum;
  }

  // L_i - s_ip in natural units.
  static double margin(const Problem& p, int64_t i, T log_sum) {
    const T positive = dot(row(p, i), row(p, partner(p, i)), p.d);
    return LN_2 * log_sum - double(positive) * p.inverse_temperature;
  }

  static void finish_losses(const Problem& p, int64_t begin, int64_t end, T* losses, T* log_sum) {
    for (int64_t i = begin; i < end; ++i) {
      log_sum[i] = T(__builtin_log2(p.sums[i]) + (p.running ? p.maxima[i] : shift(p)));
      if (!p.both && i >= p.pairs) continue;
      const double x = margin(p, i, log_sum[i]);
      losses[i] = T(x > 0 ? x + __builtin_log1p(__builtin_exp(-x)) : __builtin_log1p(__builtin_exp(x)));
    }
  }

  // The weights b_i and, with a shared shift, b_i / sum; with a running maximum L_i in its place. Without negatives G =
  // 0.
  static void start_gradient(const Problem& p, int64_t begin, int64_t end, const T* losses_grad, const T* log_sum) {
    for (int64_t i = begin; i < end; ++i) {
      const bool anchor = i < (p.both ? 2 * p.pairs : p.pairs);
      const bool negatives = anchor && log_sum[i] != -__builtin_inf();
      const double sigma = negatives ? 1 / (1 + __builtin_exp(-margin(p, i, log_sum[i]))) : 0;
      p.weights[i] = anchor ? T(losses_grad[i] * sigma) : T(0);
      if (p.running)
        p.scaled_weights[i] = negatives ? log_sum[i] : -LOWEST;
      else
        p.scaled_weights[i] = negatives ? T(p.weights[i] * __builtin_exp2(double(shift(p)) - log_sum[i])) : T(0);
    }
  }

  // Scores of a tile to its G.
  static void weigh(const Problem& p, const Tile& tile, T* scores) {
    const T* const scaled = p.scaled_weights;
    const V top = V{} + shift(p);
    for (int64_t i = 0; i < TILE; ++i) {
      const T row_scaled = scaled[tile.row + i], row_weight = p.weights[tile.row + i];
      for (int64_t j = 0; j < TILE; j += LANES) {
        const V s = load<V>(scores + i * TILE + j), column_scaled = load<V>(scaled + tile.column + j);
        V g;
        if (p.running)
          g = row_weight * exp2_nonpositive<T, WIDE>(s - row_scaled) +
              load<V>(p.weights + tile.column + j) * exp2_nonpositive<T, WIDE>(s - column_scaled);
        else
          g = exp2_nonpositive<T, WIDE>(s - top) * (row_scaled + column_scaled);
        store(scores + i * TILE + j, g);
      }
    }
    tile.mask(p, T(0), scores);
  }

  static void add_gradient(const Problem& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                           T* workspace) {
    const int64_t wide = padded(p.d);
    for_each_tile(p, a_begin, a_end, b_begin, b_end, [&](const Tile& tile) {
      tile.scores(p, workspace);
      weigh(p, tile, workspace);
      product<V, ROWS, VECTORS>(TILE, wide, TILE, Scalars<T>{workspace, TILE, 1}, row(p, tile.column), wide,
                                p.gradient + tile.row * wide, wide, true);
      if (tile.diagonal()) return;
      product<V, ROWS, VECTORS>(TILE, wide, TILE, Scalars<T>{workspace, 1, TILE}, row(p, tile.row), wide,
                                p.gradient + tile.column * wide, wide, true);
    });
  }

  static double finish_gradient(const Problem& p, int64_t begin, int64_t end, T* first, T* second) {
    const int64_t d = p.d, wide = padded(d);
    double temperature = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t positive = partner(p, i);
      const T weight = p.weights[i] + p.weights[positive];
      T* const dz = p.gradient + i * wide;
      const T *z = row(p, i), *other = row(p, positive);
      for (int64_t j = 0; j < d; ++j) dz[j] = (dz[j] - weight * other[j]) * p.inverse_temperature;
      const T radial = dot(z, dz, d);
      temperature -= double(radial) * p.inverse_temperature / 2;
      T* const to = i < p.pairs ? (first ? first + i * d : nullptr) : (second ? second + (i - p.pairs) * d : nullptr);
      if (!to) continue;
      for (int64_t j = 0; j < d; ++j) to[j] = p.normalize ? (dz[j] - z[j] * radial) * p.inverse[i] : dz[j];
    }
    return temperature;
  }

  static constexpr NtXentLossKernel<T> KERNEL{sizes,         pack,           add_sums,       add_gradient,
                                              finish_losses, start_gradient, finish_gradient};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const NtXentLossKernels nt_xent_loss;
const NtXentLossKernels nt_xent_loss{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
