// Interests by self-attention: with the item x_t, the key y_t = x_t + p_t, what its place adds included,
//   h_t = tanh(W y_t + c),   s_tk = q_k . h_t,   a_k = softmax of s_k over the items,   u_k = sum_t a_tk x_t.
// Given the cotangent U_k of u_k, with b_tk = x_t . U_k,
//   ds_tk = a_tk (b_tk - sum_t' a_t'k b_t'k),   dg_t = (sum_k ds_tk q_k) (1 - h_t^2),   dy_t = W' dg_t,
//   dx_t = sum_k a_tk U_k + dy_t,   dp_t = sum over sequences of dy_t,   dW = sum_t dg_t y_t',   dc = sum_t dg_t,
//   dq_k = sum_t ds_tk h_t.
//
// The hidden layer, the largest thing here, never leaves the first caches: it exists for a block of items and a panel
// of its columns at a time, and the backward computes it again.
#include "cpu/kernels/self_attentive_pool.h"

#include "cpu/kernels/item_rows.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/self_attentive_layout.h"

namespace cmi_fast {
namespace {

template <class T>
struct Loops : SelfAttentivePoolLayout<T> {
  using Problem = SelfAttentivePool<T>;
  using Gradients = SelfAttentivePoolGradients<T>;
  using Layout = SelfAttentivePoolLayout<T>;
  using Layout::LANES, Layout::NARROW_LANES;
  using typename Layout::N, typename Layout::Packed, typename Layout::Shape, typename Layout::Sums;
  using typename Layout::V, typename Layout::Workspace;

  // The items of sequence b, padded to whole tiles of rows, and their keys.
  static int64_t load_items(const Problem& p, const Shape& s, const Packed& packed, int64_t b, const Workspace& w) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b), d = p.sizes.d;
    for (int64_t t = 0; t < length; ++t) {
      T* const to = w.items + t * s.d;
      const T* row = read_row(p.items, first + t, d, to);
      if (row != to) copy(row, d, to);
      set_zero(to + d, s.d - d);
    }
    const int64_t padded = round_up(length, TILE_ROWS);
    set_zero(w.items + length * s.d, (padded - length) * s.d);
    if (w.keys == w.items) return padded;
    for (int64_t i = 0; i < length * s.d; i += LANES)
      store(w.keys + i, load<V>(w.items + i) + load<V>(packed.positions + i));
    set_zero(w.keys + length * s.d, (padded - length) * s.d);
    return padded;
  }

  // (1 - e) / (1 + e) with e = exp(-2 |x|), and the sign of x, of a panel in place. Out of line: beside a product gcc
  // keeps the constants of the exponential in memory.
  __attribute__((noinline)) static void hyperbolic_tangent(int64_t count, T* x) {
    constexpr int STEP = 4;
    for (int64_t i = 0; i < count; i += STEP * LANES) {
      V value[STEP], e[STEP];
#pragma GCC unroll 4
      for (int v = 0; v < STEP; ++v) {
        value[v] = load<V>(x + i + v * LANES);
        e[v] = (value[v] < 0 ? value[v] : -value[v]) * T(2 * LOG2_E);
      }
      exp2_nonpositive<T, WIDE>(e);
#pragma GCC unroll 4
      for (int v = 0; v < STEP; ++v) {
        const V tangent = (T(1) - e[v]) / (T(1) + e[v]);
        store(x + i + v * LANES, value[v] < 0 ? -tangent : tangent);
      }
    }
  }

  // PANEL columns of the hidden layer from `column` on, for `rows` items from place `start` on.
  static void compute_hidden(const Problem& p, const Shape& s, const Packed& packed, int64_t start, int64_t rows,
                             int64_t column, const Workspace& w) {
    for (int64_t i = 0; i < rows; ++i) copy(packed.bias + column, PANEL, w.hidden + i * PANEL);
    product<V, TILE_ROWS, TILE_VECTORS>(rows, PANEL, p.sizes.d, Scalars<T>{w.keys + start * s.d, s.d, 1},
                                        packed.panels + column * s.d, PANEL, w.hidden, PANEL, true);
    hyperbolic_tangent(rows * PANEL, w.hidden);
  }

  // Adds to each lane's share of the scores what PANEL columns of the hidden layer give: whole vectors over the
  // columns, as there are too few interests for vectors over them.
  static void add_to_lanes(const Problem& p, const Shape& s, const Packed& packed, int64_t rows, int64_t column,
                           const Workspace& w) {
    constexpr int ITEMS = 2, INTERESTS = 4;  // of a tile
    static_assert(TILE_ROWS % ITEMS == 0);
    for (int64_t i = 0; i < rows; i += ITEMS)
      for (int64_t k = 0; k < p.sizes.interests; k += INTERESTS) {
        T* const lanes = w.lanes + (i * s.k + k) * LANES;
        const T *hidden = w.hidden + i * PANEL, *query = packed.queries + k * s.h + column;
        V sum[ITEMS][INTERESTS];
        const auto each = [](auto step) {
#pragma GCC unroll 4
          for (int item = 0; item < ITEMS; ++item)
#pragma GCC unroll 4
            for (int interest = 0; interest < INTERESTS; ++interest) step(item, interest);
        };
        each([&](int item, int interest) {
          sum[item][interest] = column > 0 ? load<V>(lanes + (item * s.k + interest) * LANES) : V{};
        });
        for (int64_t j = 0; j < PANEL; j += LANES)
          each([&](int item, int interest) {
            sum[item][interest] += load<V>(hidden + item * PANEL + j) * load<V>(query + interest * s.h + j);
          });
        each([&](int item, int interest) { store(lanes + (item * s.k + interest) * LANES, sum[item][interest]); });
      }
  }

  static int64_t block_rows(int64_t padded, int64_t start) { return padded - start < BLOCK ? padded - start : BLOCK; }

  // weights [length, k]: the scores' softmax over the items.
  static void softmax(const Shape& s, int64_t length, T* scores, T* weights) {
    for (int64_t k = 0; k < s.k; k += NARROW_LANES) {
      N top = N{} + Float<T>::LOWEST, sum{};
      for (int64_t t = 0; t < length; ++t) top = larger(top, load<N>(scores + t * s.k + k));
      for (int64_t t = 0; t < length; ++t) {
        const N e = exp2_nonpositive<T, NARROW>((load<N>(scores + t * s.k + k) - top) * T(LOG2_E));
        store(weights + t * s.k + k, e);
        sum += e;
      }
      const N inverse = T(1) / sum;
      for (int64_t t = 0; t < length; ++t) store(weights + t * s.k + k, load<N>(weights + t * s.k + k) * inverse);
    }
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, MutableRows pooled, T* attention, T* memory) {
    const Shape s(p.sizes);
    const Packed packed(s, p.packed);
    const Workspace w(s, memory);
    const int64_t interests = p.sizes.interests;
    set_zero(w.scores, s.rows * s.k);  // the padding's softmax is computed, too
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      const int64_t padded = load_items(p, s, packed, b, w);
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t rows = block_rows(padded, start);
        prefetch_items<T>(p.items, p.sequences, p.sizes.d, b + 1, start, BLOCK);
        for (int64_t column = 0; column < s.h; column += PANEL) {
          compute_hidden(p, s, packed, start, rows, column, w);
          add_to_lanes(p, s, packed, rows, column, w);
        }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t k = 0; k < interests; ++k)
            w.scores[(start + i) * s.k + k] = sum_lanes<T, WIDE>(load<V>(w.lanes + (i * s.k + k) * LANES))[0];
      }
      softmax(s, length, w.scores, w.weights);
      product<V, TILE_ROWS, TILE_VECTORS>(round_up(interests, TILE_ROWS), s.d, length, Scalars<T>{w.weights, 1, s.k},
                                          w.items, s.d, w.pooled, s.d, false);
      for (int64_t k = 0; k < interests; ++k) write_row(w.pooled + k * s.d, b * interests + k, p.sizes.d, pooled);
      for (int64_t t = 0; t < length; ++t) copy(w.weights + t * s.k, interests, attention + (first + t) * interests);
    }
  }

  // The cotangent of sequence b's interests, and the weights and scores' gradient of its items; zeros in the padding.
  static void load_cotangents(const Problem& p, const Shape& s, int64_t b, int64_t padded, const Gradients& gradients,
                              const Workspace& w) {
    const int64_t interests = p.sizes.interests, d = p.sizes.d;
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    set_zero(w.pooled, s.k * s.d);
    for (int64_t k = 0; k < interests; ++k) {
      T* const to = w.pooled + k * s.d;
      const T* row = read_row(gradients.pooled, b * interests + k, d, to);
      if (row != to) copy(row, d, to);
    }
    for (int64_t i = 0; i < s.d; ++i)
      for (int64_t k = 0; k < s.k; ++k) w.transposed[i * s.k + k] = w.pooled[k * s.d + i];
    set_zero(w.weights, padded * s.k);
    for (int64_t t = 0; t < length; ++t)
      copy(gradients.attention + (first + t) * interests, interests, w.weights + t * s.k);
    product<N, TILE_ROWS, 1>(padded, s.k, d, Scalars<T>{w.items, s.d, 1}, w.transposed, s.k, w.scores, s.k, false);
    for (int64_t k = 0; k < s.k; k += NARROW_LANES) {
      N mean{};
      for (int64_t t = 0; t < length; ++t) mean += load<N>(w.weights + t * s.k + k) * load<N>(w.scores + t * s.k + k);
      for (int64_t t = 0; t < padded; ++t)
        store(w.scores + t * s.k + k, load<N>(w.weights + t * s.k + k) * (load<N>(w.scores + t * s.k + k) - mean));
    }
  }

  // From the scores' gradient of a block to that before the activation, of PANEL columns; adds to the sums.
  static void differentiate_hidden(const Problem& p, const Shape& s, const Packed& packed, int64_t start, int64_t rows,
                                   int64_t column, const T* sums_memory, const Workspace& w) {
    const T* slope = w.scores + start * s.k;
    compute_hidden(p, s, packed, start, rows, column, w);
    product<V, TILE_ROWS, TILE_VECTORS>(rows, PANEL, p.sizes.interests, Scalars<T>{slope, s.k, 1},
                                        packed.queries + column, s.h, w.hidden_gradient, PANEL, false);
    if (sums_memory) {
      const Sums sums(s, sums_memory);
      product<V, TILE_ROWS, TILE_VECTORS>(round_up(p.sizes.interests, TILE_ROWS), PANEL, rows,
                                          Scalars<T>{slope, 1, s.k}, w.hidden, PANEL, sums.queries + column, s.h, true);
    }
    for (int64_t i = 0; i < rows * PANEL; i += LANES) {
      const V h = load<V>(w.hidden + i);
      store(w.hidden_gradient + i, load<V>(w.hidden_gradient + i) * (T(1) - h * h));
    }
    if (!sums_memory) return;
    const Sums sums(s, sums_memory);
    for (int64_t i = 0; i < rows; ++i) add(w.hidden_gradient + i * PANEL, PANEL, sums.bias + column);
    product<V, TILE_ROWS, TILE_VECTORS>(PANEL, s.d, rows, Scalars<T>{w.hidden_gradient, 1, PANEL}, w.keys + start * s.d,
                                        s.d, sums.weight + column * s.d, s.d, true);
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape s(p.sizes);
    const Packed packed(s, p.packed);
    const Workspace w(s, memory);
    const MutableRows out = gradients.items;
    if (gradients.parameters) set_zero(gradients.parameters, Layout::gradient_size(p.sizes));
    T* const positions = gradients.parameters && s.places ? Sums(s, gradients.parameters).positions : nullptr;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      const int64_t padded = load_items(p, s, packed, b, w);
      load_cotangents(p, s, b, padded, gradients, w);
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t rows = block_rows(padded, start);
        prefetch_items<T>(p.items, p.sequences, p.sizes.d, b + 1, start, BLOCK);
        for (int64_t column = 0; column < s.h; column += PANEL) {
          differentiate_hidden(p, s, packed, start, rows, column, gradients.parameters, w);
          if (out.data || positions)
            product<V, TILE_ROWS, TILE_VECTORS>(rows, s.d, PANEL, Scalars<T>{w.hidden_gradient, PANEL, 1},
                                                packed.weight + column * s.d, s.d, w.item_gradient, s.d, column > 0);
        }
        if (positions)
          add(w.item_gradient, (length - start < rows ? length - start : rows) * s.d, positions + start * s.d);
        if (out.data)
          product<V, TILE_ROWS, TILE_VECTORS>(rows, s.d, p.sizes.interests, Scalars<T>{w.weights + start * s.k, s.k, 1},
                                              w.pooled, s.d, w.item_gradient, s.d, true);
        for (int64_t i = 0; out.data && i < rows && start + i < length; ++i)
          write_gradient(w.item_gradient + i * s.d, first + start + i, p.sizes.d, out, gradients.stream);
      }
      if (out.data) clear_gradients<T>(first + length, first + p.sequences.rows(b), p.sizes.d, out, gradients.stream);
    }
    finish_streaming();
  }

  static constexpr SelfAttentivePoolKernel<T> KERNEL{
      Layout::packed_size,     Layout::workspace_size, Layout::gradient_size, Layout::pack, forward, backward,
      Layout::unpack_gradients};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const SelfAttentivePoolKernels self_attentive_pool;
const SelfAttentivePoolKernels self_attentive_pool{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
