// One step in time: the states after items, and from their cotangents those before the activations.
#pragma once

#include "cpu/kernels/gru_layout.h"

namespace cmi_fast {
namespace {

template <class T>
struct GruStep {
  using V = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;

  struct Gates {
    V n, r, z, q;
  };

  // 2^(-|x| factor), of which sigmoid and tanh are made.
  template <int COUNT>
  static void exponentials(V (&x)[COUNT], T factor) {
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) x[i] = (x[i] < 0 ? x[i] : -x[i]) * factor;
    exp2_nonpositive<T, WIDE>(x);
  }

  static V sigmoid(V x, V exponential) {
    const V inverse = T(1) / (T(1) + exponential);
    return x < 0 ? exponential * inverse : inverse;
  }

  // From what goes into the activations; into n's, r q has yet to go.
  static Gates activate(const Gates& in) {
    V two[2] = {in.r, in.z};
    exponentials(two, T(LOG2_E));
    const V r = sigmoid(in.r, two[0]), z = sigmoid(in.z, two[1]), n_in = in.n + r * in.q;
    V one[1] = {n_in};
    exponentials(one, T(2 * LOG2_E));
    const V n = (T(1) - one[0]) / (T(1) + one[0]);
    return {n_in < 0 ? -n : n, r, z, in.q};
  }

  // sum += a [TILE_ROWS, depth] weights [depth, 3, LANES]
  __attribute__((always_inline)) static inline void accumulate(int64_t depth, const T* a, int64_t stride,
                                                               const T* weights, V (&sum)[TILE_ROWS][GATES]) {
    for (int64_t k = 0; k < depth; ++k) {
      V right[GATES];
#pragma GCC unroll 4
      for (int gate = 0; gate < GATES; ++gate) right[gate] = load<V>(weights + (k * GATES + gate) * LANES);
#pragma GCC unroll 8
      for (int row = 0; row < TILE_ROWS; ++row) {
        const T left = a[row * stride + k];
#pragma GCC unroll 4
        for (int gate = 0; gate < GATES; ++gate) sum[row][gate] += left * right[gate];
      }
    }
  }

  // What goes into the activations of a tile of rows [x h], of LANES columns from j on: x adds to n, r, z and h to
  // r, z, q.
  static void tile_gates(const GruShape& shape, const PackedGru<T>& packed, int64_t j, const T* inputs,
                         Gates (&gates)[TILE_ROWS]) {
    const auto bias = [&](int64_t slot) { return load<V>(packed.bias + slot * shape.height + j); };
    V sum[TILE_ROWS][GATES];
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      sum[row][0] = bias(1);
      sum[row][1] = bias(2);
      sum[row][2] = bias(0);
    }
    accumulate(shape.d, inputs, shape.input_stride, packed.x_gates + j * shape.d * GATES, sum);
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      gates[row].n = sum[row][2];
      sum[row][2] = bias(3);
    }
    accumulate(shape.hidden, inputs + shape.width, shape.input_stride, packed.h_gates + j * shape.hidden * GATES, sum);
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      gates[row].r = sum[row][0];
      gates[row].z = sum[row][1];
      gates[row].q = sum[row][2];
    }
  }

  // LANES columns, from j on, of the states after `count` rows, of a tile or fewer.
  static void advance_tile(const GruShape& shape, const PackedGru<T>& packed, int64_t j, int64_t count, const T* inputs,
                           T* next, T* saved) {
    Gates in[TILE_ROWS];
    tile_gates(shape, packed, j, inputs, in);
    for (int64_t row = 0; row < count; ++row) {
      const Gates g = activate(in[row]);
      const int64_t place = row * shape.input_stride + shape.width + j;
      const V h = load<V>(inputs + place);
      store(next + place, g.n + g.z * (h - g.n));
      if (!saved) continue;
      T* const to = saved + row * SAVED * shape.height + j;
      store(to, g.n);
      store(to + shape.height, g.r);
      store(to + 2 * shape.height, g.z);
      store(to + 3 * shape.height, g.q);
      store(to + 4 * shape.height, h);
    }
  }

  // The states after `active` rows [x h] become the h of the rows `next`. A group's weights stay in L1 meanwhile.
  static void advance(const GruShape& shape, const PackedGru<T>& packed, int64_t active, const T* inputs, T* next,
                      T* saved) {
    for (int64_t j = 0; j < shape.height; j += LANES)
      for (int64_t row = 0; row < active; row += TILE_ROWS)
        advance_tile(shape, packed, j, active - row < TILE_ROWS ? active - row : TILE_ROWS,
                     inputs + row * shape.input_stride, next + row * shape.input_stride,
                     saved ? saved + row * SAVED * shape.height : nullptr);
  }

  // From a saved row to the cotangents before its activations, and to the state h before it; dh becomes what reaches
  // that state directly. Fetches the row `ahead` numbers on.
  static void differentiate(const GruShape& shape, const T* saved, int64_t ahead, T* h, T* gates, T* dh) {
    const int64_t height = shape.height;
    for (int64_t j = 0; j < height; j += LANES) {
      const auto read = [&](int64_t slot) {
        __builtin_prefetch(saved + ahead + slot * height + j);
        return load<V>(saved + slot * height + j);
      };
      const V n = read(0), r = read(1), z = read(2), q = read(3), before = read(4);
      const V cotangent = load<V>(dh + j), kept = cotangent * z;
      const V dn = (cotangent - kept) * (T(1) - n * n), dq = dn * r;
      store(gates + j, dn);
      store(gates + height + j, dq * q * (T(1) - r));
      store(gates + 2 * height + j, kept * (before - n) * (T(1) - z));
      store(gates + 3 * height + j, dq);
      store(dh + j, kept);
      store(h + j, before);
    }
  }
};

}  // namespace
}  // namespace cmi_fast
