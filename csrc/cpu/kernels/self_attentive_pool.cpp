// Interests by self-attention: with the item x_t and what its place adds, the shift c_t = W p_t + c,
//   h_t = tanh(W x_t + c_t),   s_tk = q_k . h_t,   a_k = softmax of s_k over the items,   u_k = sum_t a_tk x_t.
// Given the cotangent U_k of u_k, with b_tk = x_t . U_k,
//   ds_tk = a_tk (b_tk - sum_t' a_t'k b_t'k),   dh_t = sum_k ds_tk q_k,   dc_t = dh_t (1 - h_t^2),
//   dx_t = sum_k a_tk U_k + W' dc_t,   dW = sum_t dc_t x_t',   dq_k = sum_t ds_tk h_t.
//
// The hidden layer, the largest thing here, never leaves the first cache: it exists for a block of items and a panel of
// its columns at a time, and the backward computes it again.
#include "cpu/kernels/self_attentive_pool.h"

#include "cpu/kernels/place_buffers.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

constexpr int64_t BLOCK = 32;  // items
constexpr int64_t PANEL = 64;  // columns of the hidden layer
// Tiles: enough accumulators to hide the latency of their sums, few enough for the registers.
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = REGISTERS == 32 ? 4 : 2;
constexpr int NARROW = WIDE < 32 ? WIDE : 32;  // of vectors over the interests: they are few
static_assert(BLOCK % TILE_ROWS == 0 && PANEL % TILE_ROWS == 0);

template <class T>
struct Loops {
  using Problem = SelfAttentivePool<T>;
  using Gradients = SelfAttentivePoolGradients<T>;
  using Sizes = SelfAttentivePoolSizes;
  using V = Vector<T, WIDE>;
  using N = Vector<T, NARROW>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  static constexpr int NARROW_LANES = VectorOf<T, NARROW>::LANES;

  // Everything padded with zeros, which add nothing.
  struct Shape {
    int64_t k, h, d, places, rows;

    explicit Shape(const Sizes& sizes)
        : k(round_up(sizes.interests, NARROW_LANES > TILE_ROWS ? NARROW_LANES : TILE_ROWS)),
          h(round_up(sizes.hidden, PANEL)),
          d(round_up(sizes.d, LANES)),
          places(sizes.places),
          rows(round_up(sizes.longest, TILE_ROWS)) {}
  };

  // W' in panels [h / PANEL, d, PANEL], W [h, d], queries [k, h], the shift [places, h].
  struct Packed {
    T *panels, *weight, *queries, *shift;
    int64_t size;

    Packed(const Shape& s, const T* memory) {
      size = place_buffers({s.h * s.d, s.h * s.d, s.k * s.h, s.places * s.h}, {&panels, &weight, &queries, &shift},
                           const_cast<T*>(memory));
    }
  };

  // Sums of gradients: of W [h, d], of the queries [k, h], of the shift [places, h].
  struct Sums {
    T *weight, *queries, *shift;
    int64_t size;

    Sums(const Shape& s, const T* memory) {
      size = place_buffers({s.h * s.d, s.k * s.h, s.places * s.h}, {&weight, &queries, &shift}, const_cast<T*>(memory));
    }
  };

  // Of one thread: the items of a sequence [rows, d], their scores and weights [rows, k]; a panel of the hidden layer
  // and its gradient; sums of each lane for the scores [BLOCK, k, LANES]; items' gradient; interests or their cotangent
  // [k, d], and its transpose.
  struct Workspace {
    T *items, *scores, *weights, *hidden, *hidden_gradient, *lanes, *item_gradient, *pooled, *transposed;
    int64_t size;

    Workspace(const Shape& s, T* memory) {
      size = place_buffers(
          {s.rows * s.d, s.rows * s.k, s.rows * s.k, BLOCK * PANEL, BLOCK * PANEL, BLOCK * s.k * LANES, BLOCK * s.d,
           s.k * s.d, s.k * s.d},
          {&items, &scores, &weights, &hidden, &hidden_gradient, &lanes, &item_gradient, &pooled, &transposed}, memory);
    }
  };

  static int64_t packed_size(const Sizes& sizes) { return Packed(Shape(sizes), nullptr).size; }
  static int64_t workspace_size(const Sizes& sizes) { return Workspace(Shape(sizes), nullptr).size; }
  static int64_t gradient_size(const Sizes& sizes) { return Sums(Shape(sizes), nullptr).size; }

  static T inner(const T* a, const T* b, int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
  }

  static void add_multiple(T factor, const T* from, int64_t count, T* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
  }

  static void pack(const SelfAttentivePoolParameters<const T>& parameters, const Sizes& sizes, T* memory) {
    const Shape s(sizes);
    const Packed packed(s, memory);
    set_zero(memory, packed.size);
    for (int64_t j = 0; j < sizes.hidden; ++j) {
      const T* row = parameters.weight + j * sizes.d;
      copy(row, sizes.d, packed.weight + j * s.d);
      for (int64_t i = 0; i < sizes.d; ++i) packed.panels[(j / PANEL * s.d + i) * PANEL + j % PANEL] = row[i];
    }
    for (int64_t k = 0; k < sizes.interests; ++k)
      copy(parameters.queries + k * sizes.hidden, sizes.hidden, packed.queries + k * s.h);
    for (int64_t t = 0; t < sizes.places; ++t) {
      T* const shift = packed.shift + t * s.h;
      if (parameters.bias) copy(parameters.bias, sizes.hidden, shift);
      for (int64_t j = 0; parameters.positions && j < sizes.hidden; ++j)
        shift[j] += inner(parameters.weight + j * sizes.d, parameters.positions + t * sizes.d, sizes.d);
    }
  }

  // What the sums come to, through the shift too: dp_t = W' dc_t, dW += sum_t dc_t p_t', dc = sum_t dc_t.
  static void unpack_gradients(const T* sum, const SelfAttentivePoolParameters<const T>& parameters, const Sizes& sizes,
                               const SelfAttentivePoolParameters<T>& gradients) {
    const Shape s(sizes);
    const Sums sums(s, sum);
    const int64_t hidden = sizes.hidden, d = sizes.d;
    for (int64_t k = 0; gradients.queries && k < sizes.interests; ++k)
      copy(sums.queries + k * s.h, hidden, gradients.queries + k * hidden);
    for (int64_t j = 0; gradients.weight && j < hidden; ++j) copy(sums.weight + j * s.d, d, gradients.weight + j * d);
    if (gradients.bias) set_zero(gradients.bias, hidden);
    if (gradients.positions) set_zero(gradients.positions, sizes.places * d);
    for (int64_t t = 0; t < sizes.places; ++t) {
      const T* shift = sums.shift + t * s.h;
      if (gradients.bias) add(shift, hidden, gradients.bias);
      for (int64_t j = 0; parameters.positions && j < hidden; ++j) {
        if (gradients.weight) add_multiple(shift[j], parameters.positions + t * d, d, gradients.weight + j * d);
        if (gradients.positions) add_multiple(shift[j], parameters.weight + j * d, d, gradients.positions + t * d);
      }
    }
  }

  // The items of sequence b, padded to whole tiles of rows.
  static int64_t load_items(const Problem& p, const Shape& s, int64_t b, T* items) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b), d = p.sizes.d;
    for (int64_t t = 0; t < length; ++t) {
      T* const to = items + t * s.d;
      const T* row = read_row(p.items, first + t, d, to);
      if (row != to) copy(row, d, to);
      set_zero(to + d, s.d - d);
    }
    const int64_t padded = round_up(length, TILE_ROWS);
    set_zero(items + length * s.d, (padded - length) * s.d);
    return padded;
  }

  // (1 - e) / (1 + e) with e = exp(-2 |x|), and the sign of x, of a panel in place.
  static void hyperbolic_tangent(int64_t count, T* x) {
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
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t place = start + i < s.places ? start + i : s.places - 1;  // the last one serves all, and padding
      copy(packed.shift + place * s.h + column, PANEL, w.hidden + i * PANEL);
    }
    product<V, TILE_ROWS, TILE_VECTORS>(rows, PANEL, p.sizes.d, Scalars<T>{w.items + start * s.d, s.d, 1},
                                        packed.panels + column * s.d, PANEL, w.hidden, PANEL, true);
    hyperbolic_tangent(rows * PANEL, w.hidden);
  }

  // Adds to each lane's share of the scores what PANEL columns of the hidden layer give: whole vectors over the
  // columns, as there are too few interests for vectors over them.
  static void add_to_lanes(const Problem& p, const Shape& s, const Packed& packed, int64_t rows, int64_t column,
                           const Workspace& w) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < p.sizes.interests; ++k) {
        T* const lanes = w.lanes + (i * s.k + k) * LANES;
        const T *hidden = w.hidden + i * PANEL, *query = packed.queries + k * s.h + column;
        V sum = column > 0 ? load<V>(lanes) : V{};
#pragma GCC unroll 16
        for (int64_t j = 0; j < PANEL; j += LANES) sum += load<V>(hidden + j) * load<V>(query + j);
        store(lanes, sum);
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
      const int64_t padded = load_items(p, s, b, w.items);
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t rows = block_rows(padded, start);
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
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t place = start + i < s.places ? start + i : s.places - 1;  // padding adds zeros
      add(w.hidden_gradient + i * PANEL, PANEL, sums.shift + place * s.h + column);
    }
    product<V, TILE_ROWS, TILE_VECTORS>(PANEL, s.d, rows, Scalars<T>{w.hidden_gradient, 1, PANEL},
                                        w.items + start * s.d, s.d, sums.weight + column * s.d, s.d, true);
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape s(p.sizes);
    const Packed packed(s, p.packed);
    const Workspace w(s, memory);
    const MutableRows out = gradients.items;
    const int64_t bytes = p.sizes.d * (out.element == Element::computed ? sizeof(T) : 2);
    if (gradients.parameters) set_zero(gradients.parameters, Sums(s, nullptr).size);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      const int64_t padded = load_items(p, s, b, w.items);
      load_cotangents(p, s, b, padded, gradients, w);
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t rows = block_rows(padded, start);
        if (out.data)
          product<V, TILE_ROWS, TILE_VECTORS>(rows, s.d, p.sizes.interests, Scalars<T>{w.weights + start * s.k, s.k, 1},
                                              w.pooled, s.d, w.item_gradient, s.d, false);
        for (int64_t column = 0; column < s.h; column += PANEL) {
          differentiate_hidden(p, s, packed, start, rows, column, gradients.parameters, w);
          if (out.data)
            product<V, TILE_ROWS, TILE_VECTORS>(rows, s.d, PANEL, Scalars<T>{w.hidden_gradient, PANEL, 1},
                                                packed.weight + column * s.d, s.d, w.item_gradient, s.d, true);
        }
        for (int64_t i = 0; out.data && i < rows && start + i < length; ++i)
          write_row(w.item_gradient + i * s.d, first + start + i, p.sizes.d, out);
      }
      if (out.data)
        set_zero(static_cast<char*>(out.data) + (first + length) * bytes, (p.sequences.rows(b) - length) * bytes);
    }
  }

  static constexpr SelfAttentivePoolKernel<T> KERNEL{packed_size, workspace_size, gradient_size,   pack,
                                                     forward,     backward,       unpack_gradients};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const SelfAttentivePoolKernels self_attentive_pool;
const SelfAttentivePoolKernels self_attentive_pool{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
