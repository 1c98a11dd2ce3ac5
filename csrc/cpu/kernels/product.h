// One small matrix product, from which the kernels are built: C (+)= A B on packed, zero-padded blocks in L1.
#pragma once

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

// A block of scalars read one at a time: element (row, k) lies at data[row * row_stride + k * step].
template <class T>
struct Scalars {
  const T* data;
  int64_t row_stride, step;
};

// ROWS x VECTORS accumulators in registers; each step multiplies one scalar of every row with a row of B.
template <class V, int ROWS, int VECTORS, class T>
inline void product_tile(int64_t depth, Scalars<T> a, const T* b, int64_t b_stride, T* c, int64_t c_stride, bool add) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  V sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sum[row][v] = add ? load<V>(c + row * c_stride + v * LANES) : V{};
  for (int64_t k = 0; k < depth; ++k) {
    V right[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) right[v] = load<V>(b + k * b_stride + v * LANES);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const T left = a.data[row * a.row_stride + k * a.step];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[row][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(c + row * c_stride + v * LANES, sum[row][v]);
}

// C [rows, columns] = (add ? C : 0) + A [rows, depth] B [depth, columns].
// rows is a multiple of ROWS and columns of V's lanes: blocks are padded, so there are no tails.
template <class V, int ROWS, int VECTORS, class T>
inline void product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* b, int64_t b_stride, T* c,
                    int64_t c_stride, bool add) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  for (int64_t row = 0; row < rows; row += ROWS) {
    const Scalars<T> left{a.data + row * a.row_stride, a.row_stride, a.step};
    T* out = c + row * c_stride;
    int64_t column = 0;
    for (; column + VECTORS * LANES <= columns; column += VECTORS * LANES)
      product_tile<V, ROWS, VECTORS>(depth, left, b + column, b_stride, out + column, c_stride, add);
    for (; column < columns; column += LANES)
      product_tile<V, ROWS, 1>(depth, left, b + column, b_stride, out + column, c_stride, add);
  }
}

}  // namespace
}  // namespace cmi_fast
