// The steps of a routing that do not depend on where votes come from. Logits and weights are [interests, length], so
// that vectors run over the items: there are more of them than interests.
#pragma once

#include "cpu/kernels/capsule_routing.h"
#include "cpu/kernels/item_rows.h"
#include "cpu/kernels/place_buffers.h"
#include "cpu/kernels/product.h"

namespace cmi_fast {
namespace {

// Tiles: enough accumulators to hide the latency of their sums, few enough for the registers.
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = REGISTERS == 32 ? 4 : 2;

template <class T>
struct CapsuleSteps {
  using Problem = CapsuleRouting<T>;
  using Gradients = CapsuleRoutingGradients<T>;
  using V = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;

  static int64_t active(const Problem& p, int64_t b) { return p.active ? p.active[b] : p.interests; }

  // Row `index` of `rows`, padded with zeros to `width` elements.
  static void load_row(ConstRows rows, int64_t index, int64_t d, int64_t width, T* to) {
    const T* row = read_row(rows, index, d, to);
    if (row != to) copy(row, d, to);
    set_zero(to + d, width - d);
  }

  // `count` rows of d elements, padded with zeros to `width`.
  static void load_rows(const T* from, int64_t count, int64_t d, int64_t width, T* to) {
    for (int64_t i = 0; i < count; ++i) {
      copy(from + i * d, d, to + i * width);
      set_zero(to + i * width + d, width - d);
    }
  }

  // Sequence b's logits to start from, rows `stride` apart.
  static void load_logits(const Problem& p, int64_t b, int64_t stride, T* logits) {
    set_zero(logits, p.interests * stride);
    if (!p.logits) return;
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    for (int64_t t = 0; t < length; ++t)
      for (int64_t k = 0; k < p.interests; ++k) logits[k * stride + t] = p.logits[(first + t) * p.interests + k];
  }

  // weights = softmax over the first `count` interests of the logits; zeros for the others and beyond the length.
  static void softmax(int64_t interests, int64_t count, int64_t length, int64_t stride, const T* logits, T* weights) {
    set_zero(weights + count * stride, (interests - count) * stride);
    for (int64_t t = 0; t < length; t += LANES) {
      V top = load<V>(logits + t), sum{};
      for (int64_t k = 1; k < count; ++k) top = larger(top, load<V>(logits + k * stride + t));
      for (int64_t k = 0; k < count; ++k) {
        const V e = exp2_nonpositive<T, WIDE>((load<V>(logits + k * stride + t) - top) * T(LOG2_E));
        store(weights + k * stride + t, e);
        sum += e;
      }
      const V inverse = T(1) / sum;
      for (int64_t k = 0; k < count; ++k) store(weights + k * stride + t, load<V>(weights + k * stride + t) * inverse);
    }
    for (int64_t k = 0; k < count; ++k) set_zero(weights + k * stride + length, stride - length);
  }

  static T dot(const T* a, const T* b, int64_t width) {
    V sum{};
    for (int64_t i = 0; i < width; i += LANES) sum += load<V>(a + i) * load<V>(b + i);
    return sum_lanes<T, WIDE>(sum)[0];
  }

  static void add_multiple(T factor, const T* from, int64_t count, T* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
  }

  static T total(const T* row, int64_t length) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < length; ++t) sum += row[t];
    return sum;
  }

  static T square_root(T x) {
    if constexpr (sizeof(T) == 4)
      return __builtin_sqrtf(x);
    else
      return __builtin_sqrt(x);
  }

  // What |z|^2 = q makes of z.
  static T squashing(T q) { return q / (1 + q) / square_root(q + T(1e-9)); }

  static void squash(const T* z, int64_t width, T* v) {
    const T factor = squashing(dot(z, z, width));
    for (int64_t i = 0; i < width; i += LANES) store(v + i, load<V>(z + i) * factor);
  }

  // Its backward, from cotangents U of v: with v = f(q) z, f U + 2 f'(q) (z . U) z, where
  // f'(q) = (1 / (1 + q) - q / (2 (q + 1e-9))) / ((1 + q) sqrt(q + 1e-9)).
  static void cotangents(const T* sums, ConstRows interests_grad, int64_t e, int64_t begin, int64_t end, T* sums_grad) {
    for (int64_t row = begin; row < end; ++row) {
      const T* z = sums + row * e;
      T* const out = sums_grad + row * e;
      const T* given = read_row(interests_grad, row, e, out);
      T q = 0, along = 0;
#pragma omp simd reduction(+ : q, along)
      for (int64_t i = 0; i < e; ++i) {
        q += z[i] * z[i];
        along += z[i] * given[i];
      }
      const T inverse = 1 / ((1 + q) * square_root(q + T(1e-9)));
      const T factor = q * inverse, slope = (1 / (1 + q) - q / (2 * (q + T(1e-9)))) * inverse * 2 * along;
#pragma omp simd
      for (int64_t i = 0; i < e; ++i) out[i] = factor * given[i] + slope * z[i];
    }
  }

  // What the forward of sequence b leaves; z and v are [interests, width], weights' rows `stride` apart.
  static void write_result(const Problem& p, int64_t b, int64_t stride, int64_t width, const T* weights, const T* z,
                           const T* v, const CapsuleRoutingResult<T>& result) {
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    for (int64_t k = 0; k < p.interests; ++k) {
      const int64_t row = b * p.interests + k;
      copy(weights + k * stride, length, result.weights + first * p.interests + k * length);
      copy(z + k * width, p.e, result.sums + row * p.e);
      write_row(v + k * width, row, p.e, result.interests);
    }
  }
};

}  // namespace
}  // namespace cmi_fast
