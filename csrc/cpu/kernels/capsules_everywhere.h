// Routing with maps that are the same at every place. Votes u_tk = W_k x_t + c are never computed: with
// y_k = sum_t w_tk x_t, n_k = sum_t w_tk and v_k = f(|z_k|^2) z_k,
//   z_k = W_k y_k + n_k c,   u_tk . v_k = f (x_t . r_k + s_k)   with r_k = W_k' z_k,  s_k = c . z_k,
// so that maps meet a few sums an iteration instead of every item. With G_k = W_k' W_k and h_k = W_k' c,
//   r_k = G_k y_k + n_k h_k,   s_k = h_k . y_k + n_k c . c,   |z_k|^2 = y_k . r_k + n_k s_k:
// one product an iteration, and z_k itself in the last one alone. For the cotangents D_k of that,
//   dy_k = W_k' D_k,   dx_t = sum_k w_tk dy_k,   dW_k = D_k y_k' (of a shared map: their sum),   dc = sum_k n_k D_k,
// which meets no item again: the forward keeps y_k.
#pragma once

#include "cpu/kernels/capsule_steps.h"
#include "cpu/kernels/transpose.h"

namespace cmi_fast {
namespace {

template <class T>
struct CapsulesEverywhere {
  using Problem = CapsuleRouting<T>;
  using Gradients = CapsuleRoutingGradients<T>;
  using Steps = CapsuleSteps<T>;
  using V = typename Steps::V;
  static constexpr int LANES = Steps::LANES;
  static constexpr int64_t BLOCK = 16;  // sequences whose sums are taken through the maps together
  static constexpr int64_t SUMMED_COLUMNS = 64;
  static_assert(BLOCK % TILE_ROWS == 0);

  // Everything padded with zeros, which add nothing.
  struct Shape {
    int64_t k, d, e, rows;

    explicit Shape(const Problem& p)
        : k(round_up(p.interests, TILE_ROWS)),
          d(round_up(p.d, LANES)),
          e(round_up(p.e, LANES > TILE_ROWS ? LANES : TILE_ROWS)),
          rows(round_up(p.longest, LANES > TILE_ROWS ? LANES : TILE_ROWS)) {}
  };

  // Of each map W' [d, e], G [d, d], h [d].
  struct PackedMap {
    T *transposed, *gram, *along_bias;

    PackedMap(const Shape& s, int64_t map, const T* memory)
        : transposed(const_cast<T*>(memory) + map * size(s)),
          gram(transposed + s.d * s.e),
          along_bias(gram + s.d * s.d) {}

    static int64_t size(const Shape& s) { return s.d * (s.e + s.d + 1); }
  };

  // Of one thread, forward: the items of a sequence [rows, d] and their transpose [d, rows]; logits and weights [k,
  // rows]; sums y and r [k, d], z and interests v [k, e], f s [k]; the bias [e].
  struct ForwardSpace {
    T *items, *transposed, *logits, *weights, *y, *r, *z, *v, *along_bias, *bias;
    int64_t size;

    ForwardSpace(const Shape& s, T* memory) {
      size = place_buffers({s.rows * s.d, s.rows * s.d, s.k * s.rows, s.k * s.rows, s.k * s.d, s.k * s.d, s.k * s.e,
                            s.k * s.e, s.k, s.e},
                           {&items, &transposed, &logits, &weights, &y, &r, &z, &v, &along_bias, &bias}, memory);
    }
  };

  // Of one thread, backward: maps and their gradient [map_count, e, d], the bias's [e]; of a block of sequences the
  // cotangents of z [BLOCK * interests, e], y and dy [BLOCK * interests, d]; weights of a sequence [interests, rows]
  // and its items' gradient [rows, d].
  struct BackwardSpace {
    T *maps, *map_gradient, *bias_gradient, *cotangents, *y, *y_gradient, *weights, *items;
    int64_t size;

    BackwardSpace(const Shape& s, const Problem& p, T* memory) {
      const int64_t map = p.map_count * s.e * s.d, sums = BLOCK * p.interests;
      size =
          place_buffers({map, map, s.e, sums * s.e, sums * s.d, sums * s.d, p.interests * s.rows, s.rows * s.d},
                        {&maps, &map_gradient, &bias_gradient, &cotangents, &y, &y_gradient, &weights, &items}, memory);
    }
  };

  static int64_t packed_size(const Problem& p) { return p.map_count * PackedMap::size(Shape(p)); }

  static int64_t workspace_size(const Problem& p) {
    const Shape s(p);
    const int64_t forward = ForwardSpace(s, nullptr).size, backward = BackwardSpace(s, p, nullptr).size;
    return forward > backward ? forward : backward;
  }

  static void pack(const Problem& p, int64_t begin, int64_t end, T* memory) {
    const Shape s(p);
    for (int64_t m = begin; m < end; ++m) {
      const PackedMap packed(s, m, memory);
      const T* map = p.maps + m * p.e * p.d;
      set_zero(packed.transposed, PackedMap::size(s));
      transpose_matrix(map, p.e, p.d, p.d, packed.transposed, s.e);
      for (int64_t j = 0; j < p.d; ++j) sum_rows(p, map, map + j, p.d, packed.gram + j * s.d);
      if (p.bias) sum_rows(p, map, p.bias, 1, packed.along_bias);
    }
  }

  // to [d] = the sum of the map's rows times `factors`, in double: once rounded it stands for two products.
  static void sum_rows(const Problem& p, const T* map, const T* factors, int64_t stride, T* to) {
    for (int64_t start = 0; start < p.d; start += SUMMED_COLUMNS) {
      const int64_t count = p.d - start < SUMMED_COLUMNS ? p.d - start : SUMMED_COLUMNS;
      double sums[SUMMED_COLUMNS] = {};
      for (int64_t i = 0; i < p.e; ++i) {
        const double factor = factors[i * stride];
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) sums[j] += factor * map[i * p.d + start + j];
      }
      for (int64_t j = 0; j < count; ++j) to[start + j] = T(sums[j]);
    }
  }

  static void load_items(const Problem& p, const Shape& s, int64_t b, int64_t stride, const ForwardSpace& w) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    for (int64_t t = 0; t < length; ++t) Steps::load_row(p.items, first + t, p.d, s.d, w.items + t * s.d);
    set_zero(w.items + length * s.d, (stride - length) * s.d);
    transpose_matrix(w.items, stride, s.d, s.d, w.transposed, stride);
  }

  // out [k, columns] = sums [k, d], of which each meets its own interest's matrix [d, columns].
  template <class MatrixOf>
  static void through_maps(const Problem& p, const Shape& s, const T* sums, const MatrixOf& matrix, int64_t columns,
                           T* out) {
    if (p.map_count == 1)
      return product<V, TILE_ROWS, TILE_VECTORS>(s.k, columns, p.d, Scalars<T>{sums, s.d, 1}, matrix(0), columns, out,
                                                 columns, false);
    for (int64_t k = 0; k < p.interests; ++k)
      product<V, 1, TILE_VECTORS>(1, columns, p.d, Scalars<T>{sums + k * s.d, s.d, 1}, matrix(k), columns,
                                  out + k * columns, columns, false);
  }

  // Adds the votes' agreement with the interests to the logits.
  static void update_logits(const Problem& p, const Shape& s, int64_t length, int64_t stride, const ForwardSpace& w) {
    through_maps(p, s, w.y, [&](int64_t map) { return PackedMap(s, map, p.packed).gram; }, s.d, w.r);
    for (int64_t k = 0; k < p.interests; ++k) {
      T *const r = w.r + k * s.d, *const along_bias = w.along_bias + k;
      const T *y = w.y + k * s.d, *h = PackedMap(s, p.map_count > 1 ? k : 0, p.packed).along_bias;
      const T n = p.bias ? Steps::total(w.weights + k * stride, length) : T(0);
      if (p.bias) {
        Steps::add_multiple(n, h, s.d, r);
        *along_bias = Steps::dot(h, y, s.d) + n * Steps::dot(w.bias, w.bias, s.e);
      }
      const T square = Steps::dot(y, r, s.d) + n * *along_bias;
      const T factor = Steps::squashing(square > 0 ? square : T(0));  // below zero it is a rounding error
      for (int64_t j = 0; j < s.d; j += LANES) store(r + j, load<V>(r + j) * factor);
      *along_bias *= factor;
    }
    product<V, TILE_ROWS, TILE_VECTORS>(s.k, stride, p.d, Scalars<T>{w.r, s.d, 1}, w.transposed, stride, w.logits,
                                        stride, true);
    for (int64_t k = 0; p.bias && k < p.interests; ++k)  // last, as the product's sums begin with the logits
      for (int64_t t = k * stride; t < (k + 1) * stride; ++t) w.logits[t] += w.along_bias[k];
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, const CapsuleRoutingResult<T>& result, T* memory) {
    const Shape s(p);
    const ForwardSpace w(s, memory);
    set_zero(memory, w.size);  // the rows of padding interests stay zero
    if (p.bias) copy(p.bias, p.e, w.bias);
    const int64_t share = p.longest / p.iterations + 1;  // of the next sequence's items, to fetch an iteration
    for (int64_t b = begin; b < end; ++b) {
      const int64_t length = p.sequences.length(b), stride = round_up(length, LANES), count = Steps::active(p, b);
      load_items(p, s, b, stride, w);
      Steps::load_logits(p, b, stride, w.logits);
      set_zero(w.logits + p.interests * stride, (s.k - p.interests) * stride);
      for (int64_t i = 0; i < p.iterations; ++i) {
        if (i > 0) update_logits(p, s, length, stride, w);
        prefetch_items<T>(p.items, p.sequences, p.d, b + 1, i * share, share);
        Steps::softmax(s.k, count, length, stride, w.logits, w.weights);
        product<V, TILE_ROWS, TILE_VECTORS>(s.k, s.d, length, Scalars<T>{w.weights, stride, 1}, w.items, s.d, w.y, s.d,
                                            false);
      }
      through_maps(p, s, w.y, [&](int64_t map) { return PackedMap(s, map, p.packed).transposed; }, s.e, w.z);
      for (int64_t k = 0; k < p.interests; ++k) {
        if (p.bias) Steps::add_multiple(Steps::total(w.weights + k * stride, length), w.bias, s.e, w.z + k * s.e);
        Steps::squash(w.z + k * s.e, s.e, w.v + k * s.e);
      }
      Steps::write_result(p, b, stride, s.e, w.weights, w.z, w.v, result);
      for (int64_t k = 0; k < p.interests; ++k) copy(w.y + k * s.d, p.d, result.pooled + (b * p.interests + k) * p.d);
    }
  }

  // Adds what `count` sequences from b on give to the gradients of maps and bias.
  static void sum_gradients(const Problem& p, const Shape& s, int64_t b, int64_t count, const Gradients& gradients,
                            const BackwardSpace& w) {
    const int64_t maps = p.map_count, sums = count * p.interests;
    if (gradients.maps) {
      Steps::load_rows(gradients.pooled + b * p.interests * p.d, sums, p.d, s.d, w.y);
      for (int64_t m = 0; m < maps; ++m)
        product<V, TILE_ROWS, TILE_VECTORS>(s.e, s.d, sums / maps, Scalars<T>{w.cotangents + m * s.e, 1, maps * s.e},
                                            w.y + m * s.d, maps * s.d, w.map_gradient + m * s.e * s.d, s.d, true);
    }
    for (int64_t i = 0; gradients.bias && i < sums; ++i) {
      const int64_t sequence = b + i / p.interests, length = p.sequences.length(sequence);
      const T* weights = gradients.weights + p.sequences.first(sequence) * p.interests + i % p.interests * length;
      Steps::add_multiple(Steps::total(weights, length), w.cotangents + i * s.e, p.e, w.bias_gradient);
    }
  }

  // The gradient of sequence b's items from dy [interests, d].
  static void differentiate_items(const Problem& p, const Shape& s, int64_t b, const T* y_gradient,
                                  const Gradients& gradients, const BackwardSpace& w) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b), padded = round_up(length, TILE_ROWS);
    for (int64_t k = 0; k < p.interests; ++k) {
      copy(gradients.weights + first * p.interests + k * length, length, w.weights + k * padded);
      set_zero(w.weights + k * padded + length, padded - length);
    }
    product<V, TILE_ROWS, TILE_VECTORS>(padded, s.d, p.interests, Scalars<T>{w.weights, 1, padded}, y_gradient, s.d,
                                        w.items, s.d, false);
    for (int64_t t = 0; t < length; ++t)
      write_gradient(w.items + t * s.d, first + t, p.d, gradients.items, gradients.stream);
    clear_gradients<T>(first + length, first + p.sequences.rows(b), p.d, gradients.items, gradients.stream);
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape s(p);
    const BackwardSpace w(s, p, memory);
    set_zero(memory, w.size);
    for (int64_t m = 0; m < p.map_count; ++m)
      Steps::load_rows(p.maps + m * p.e * p.d, p.e, p.d, s.d, w.maps + m * s.e * s.d);
    for (int64_t b = begin; b < end; b += BLOCK) {
      const int64_t count = end - b < BLOCK ? end - b : BLOCK, maps = p.map_count, sums = count * p.interests;
      Steps::load_rows(gradients.sums + b * p.interests * p.e, sums, p.e, s.e, w.cotangents);
      sum_gradients(p, s, b, count, gradients, w);
      if (!gradients.items.data) continue;
      for (int64_t m = 0; m < maps; ++m)
        product<V, TILE_ROWS, TILE_VECTORS>(round_up(sums / maps, TILE_ROWS), s.d, p.e,
                                            Scalars<T>{w.cotangents + m * s.e, maps * s.e, 1}, w.maps + m * s.e * s.d,
                                            s.d, w.y_gradient + m * s.d, maps * s.d, false);
      for (int64_t i = 0; i < count; ++i)
        differentiate_items(p, s, b + i, w.y_gradient + i * p.interests * s.d, gradients, w);
    }
    finish_streaming();
    for (int64_t row = 0; gradients.maps && row < p.map_count * p.e; ++row)
      copy(w.map_gradient + (row / p.e * s.e + row % p.e) * s.d, p.d, gradients.maps + row * p.d);
    if (gradients.bias) copy(w.bias_gradient, p.e, gradients.bias);
  }

  static constexpr CapsuleRoutingKernel<T> KERNEL{packed_size, workspace_size, pack, forward, backward};
};

}  // namespace
}  // namespace cmi_fast
