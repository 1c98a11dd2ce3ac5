// Routing with maps that are the same at every place. Votes u_tk = W_k x_t + c are never computed: with
// y_k = sum_t w_tk x_t and n_k = sum_t w_tk,
//   z_k = W_k y_k + n_k c,   u_tk . v_k = x_t . (W_k' v_k) + c . v_k,
// so that maps meet a few sums an iteration instead of every item. For the cotangents D_k of the last z_k,
//   dy_k = W_k' D_k,   dx_t = sum_k w_tk dy_k,   dW_k = D_k y_k' (of a shared map: their sum),   dc = sum_k n_k D_k.
#pragma once

#include "cpu/kernels/capsule_steps.h"

namespace cmi_fast {
namespace {

template <class T>
struct CapsulesEverywhere {
  using Problem = CapsuleRouting<T>;
  using Steps = CapsuleSteps<T>;
  using V = typename Steps::V;
  static constexpr int LANES = Steps::LANES;

  // Everything padded with zeros, which add nothing.
  struct Shape {
    int64_t k, d, e, rows;

    explicit Shape(const Problem& p)
        : k(round_up(p.interests, TILE_ROWS)),
          d(round_up(p.d, LANES)),
          e(round_up(p.e, LANES > TILE_ROWS ? LANES : TILE_ROWS)),
          rows(round_up(p.longest, LANES > TILE_ROWS ? LANES : TILE_ROWS)) {}
  };

  // Of one thread: the items of a sequence [rows, d] and their transpose [d, rows]; logits and weights [k, rows]; sums
  // y [k, d], z [k, e], interests v [k, e], what they are to items [k, d]; the bias [e].
  struct Workspace {
    T *items, *transposed, *logits, *weights, *y, *z, *v, *back, *bias;
    int64_t size;

    Workspace(const Shape& s, T* memory) {
      size = place_buffers(
          {s.rows * s.d, s.rows * s.d, s.k * s.rows, s.k * s.rows, s.k * s.d, s.k * s.e, s.k * s.e, s.k * s.d, s.e},
          {&items, &transposed, &logits, &weights, &y, &z, &v, &back, &bias}, memory);
    }
  };

  // Each map [e, d] and its transpose [d, e].
  static int64_t packed_size(const Problem& p) {
    const Shape s(p);
    return 2 * p.map_count * s.e * s.d;
  }

  static int64_t workspace_size(const Problem& p) { return Workspace(Shape(p), nullptr).size; }

  static const T* map(const Problem& p, const Shape& s, int64_t k) {
    return p.packed + (p.map_count > 1 ? k : 0) * 2 * s.e * s.d;
  }

  static void pack(const Problem& p, int64_t begin, int64_t end, T* packed) {
    const Shape s(p);
    for (int64_t m = begin; m < end; ++m) {
      T *rows = packed + m * 2 * s.e * s.d, *transposed = rows + s.e * s.d;
      set_zero(rows, 2 * s.e * s.d);
      for (int64_t i = 0; i < p.e; ++i)
        for (int64_t j = 0; j < p.d; ++j) rows[i * s.d + j] = transposed[j * s.e + i] = p.maps[(m * p.e + i) * p.d + j];
    }
  }

  static void load_items(const Problem& p, const Shape& s, int64_t b, T* items) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    for (int64_t t = 0; t < length; ++t) Steps::load_row(p.items, first + t, p.d, s.d, items + t * s.d);
  }

  // out [k, columns] = rows [k, depth] of which each meets its own interest's matrix [depth, columns]; `place` is where
  // in a packed map that lies.
  static void through_maps(const Problem& p, const Shape& s, const T* rows, int64_t row_stride, int64_t depth,
                           int64_t place, int64_t columns, T* out) {
    if (p.map_count == 1)
      return product<V, TILE_ROWS, TILE_VECTORS>(s.k, columns, depth, Scalars<T>{rows, row_stride, 1},
                                                 map(p, s, 0) + place, columns, out, columns, false);
    for (int64_t k = 0; k < p.interests; ++k)
      product<V, 1, TILE_VECTORS>(1, columns, depth, Scalars<T>{rows + k * row_stride, row_stride, 1},
                                  map(p, s, k) + place, columns, out + k * columns, columns, false);
  }

  // y = weights times items.
  static void sum_items(const Shape& s, int64_t length, int64_t stride, const Workspace& w) {
    product<V, TILE_ROWS, TILE_VECTORS>(s.k, s.d, length, Scalars<T>{w.weights, stride, 1}, w.items, s.d, w.y, s.d,
                                        false);
  }

  static void iterate(const Problem& p, const Shape& s, int64_t count, int64_t length, int64_t stride,
                      const Workspace& w) {
    Steps::softmax(s.k, count, length, stride, w.logits, w.weights);
    sum_items(s, length, stride, w);
    through_maps(p, s, w.y, s.d, p.d, s.e * s.d, s.e, w.z);
    for (int64_t k = 0; k < p.interests; ++k) {
      if (p.bias) {
        const T n = Steps::total(w.weights + k * stride, length);
        for (int64_t i = 0; i < s.e; ++i) w.z[k * s.e + i] += n * w.bias[i];
      }
      Steps::squash(w.z + k * s.e, s.e, w.v + k * s.e);
    }
  }

  // Adds the votes' agreement with the interests to the logits.
  static void update_logits(const Problem& p, const Shape& s, int64_t stride, const Workspace& w) {
    through_maps(p, s, w.v, s.e, p.e, 0, s.d, w.back);
    product<V, TILE_ROWS, TILE_VECTORS>(s.k, stride, p.d, Scalars<T>{w.back, s.d, 1}, w.transposed, stride, w.logits,
                                        stride, true);
    for (int64_t k = 0; p.bias && k < p.interests; ++k) {
      const T agreement = Steps::dot(w.bias, w.v + k * s.e, s.e);
      for (int64_t t = 0; t < stride; ++t) w.logits[k * stride + t] += agreement;
    }
  }

  static void load_bias(const Problem& p, const Shape& s, const Workspace& w) {
    set_zero(w.bias, s.e);
    if (p.bias) copy(p.bias, p.e, w.bias);
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, const CapsuleRoutingResult<T>& result, T* memory) {
    const Shape s(p);
    const Workspace w(s, memory);
    set_zero(memory, w.size);  // the rows of padding interests stay zero
    load_bias(p, s, w);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t length = p.sequences.length(b), stride = round_up(length, LANES);
      load_items(p, s, b, w.items);
      for (int64_t j = 0; j < s.d; ++j) {
        for (int64_t t = 0; t < length; ++t) w.transposed[j * stride + t] = w.items[t * s.d + j];
        set_zero(w.transposed + j * stride + length, stride - length);
      }
      Steps::load_logits(p, b, stride, w.logits);
      set_zero(w.logits + p.interests * stride, (s.k - p.interests) * stride);
      const int64_t count = Steps::active(p, b);
      for (int64_t i = 0; i < p.iterations; ++i) {
        if (i > 0) update_logits(p, s, stride, w);
        iterate(p, s, count, length, stride, w);
      }
      Steps::write_result(p, b, stride, s.e, w.weights, w.z, w.v, result);
    }
  }

  // Adds the gradients of maps and bias to the padded sums [map_count, e, d] and [e].
  static void sum_gradients(const Problem& p, const Shape& s, int64_t length, int64_t stride, const Workspace& w,
                            T* maps, T* bias) {
    sum_items(s, length, stride, w);
    for (int64_t k = 0; k < (p.map_count > 1 ? p.interests : 1); ++k)
      product<V, TILE_ROWS, TILE_VECTORS>(s.e, s.d, p.map_count > 1 ? 1 : p.interests,
                                          Scalars<T>{w.z + k * s.e, 1, s.e}, w.y + k * s.d, s.d, maps + k * s.e * s.d,
                                          s.d, true);
    for (int64_t k = 0; k < p.interests; ++k) {
      const T n = Steps::total(w.weights + k * stride, length);
      for (int64_t i = 0; i < s.e; ++i) bias[i] += n * w.z[k * s.e + i];
    }
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const CapsuleRoutingGradients<T>& gradients,
                       T* memory) {
    const Shape s(p);
    const Workspace w(s, memory);
    T* const maps = memory + w.size;  // sums, padded
    T* const bias = maps + p.map_count * s.e * s.d;
    set_zero(memory, w.size + p.map_count * s.e * s.d + s.e);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b), stride = round_up(length, LANES);
      for (int64_t k = 0; k < p.interests; ++k) {
        copy(gradients.weights + first * p.interests + k * length, length, w.weights + k * stride);
        set_zero(w.weights + k * stride + length, stride - length);
        copy(gradients.sums + (b * p.interests + k) * p.e, p.e, w.z + k * s.e);
      }
      set_zero(w.weights + p.interests * stride, (s.k - p.interests) * stride);
      if (gradients.maps) {
        load_items(p, s, b, w.items);
        sum_gradients(p, s, length, stride, w, maps, bias);
      }
      if (!gradients.items.data) continue;
      through_maps(p, s, w.z, s.e, p.e, 0, s.d, w.back);
      product<V, TILE_ROWS, TILE_VECTORS>(round_up(length, TILE_ROWS), s.d, p.interests,
                                          Scalars<T>{w.weights, 1, stride}, w.back, s.d, w.items, s.d, false);
      for (int64_t t = 0; t < length; ++t) write_row(w.items + t * s.d, first + t, p.d, gradients.items);
      Steps::clear_rows(gradients.items, first + length, first + p.sequences.rows(b), p.d);
    }
    if (!gradients.maps) return;
    for (int64_t row = 0; row < p.map_count * p.e; ++row)
      copy(maps + (row / p.e * s.e + row % p.e) * s.d, p.d, gradients.maps + row * p.d);
    copy(bias, p.e, gradients.bias);
  }

  // The backward needs room for its sums, too.
  static int64_t workspace_with_sums(const Problem& p) {
    const Shape s(p);
    return workspace_size(p) + p.map_count * s.e * s.d + s.e;
  }

  static constexpr CapsuleRoutingKernel<T> KERNEL{packed_size, workspace_with_sums, pack, forward, backward};
};

}  // namespace
}  // namespace cmi_fast
