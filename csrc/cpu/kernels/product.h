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

template <class V, class T>
inline V multiply_add(T left, V right, V sum) {
  return sum + left * right;
}

#if defined(__AVX512BF16__)
// Two consecutive steps of a product of bfloat16 matrices, the earlier one in the lower half. Summed in float.
using BFloat16Pair = uint32_t;

using BFloat16Pairs = Vector<BFloat16Pair, WIDE>;

inline Vector<float, WIDE> multiply_add(BFloat16Pairs left, BFloat16Pairs right, Vector<float, WIDE> sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
}

inline Vector<float, WIDE> multiply_add(BFloat16Pair left, BFloat16Pairs right, Vector<float, WIDE> sum) {
  return multiply_add(BFloat16Pairs{} + left, right, sum);
}
#endif

// ROWS x VECTORS accumulators in registers; each step multiplies one scalar of every row with a row of B.
template <class V, int ROWS, int VECTORS, class T, class Sum>
inline void product_tile(int64_t depth, Scalars<T> a, const T* b, int64_t b_stride, Sum* c, int64_t c_stride,
                         bool add) {
  using S = Vector<Sum, sizeof(V)>;
  constexpr int LANES = sizeof(V) / sizeof(T);
  S sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sum[row][v] = add ? load<S>(c + row * c_stride + v * LANES) : S{};
  for (int64_t k = 0; k < depth; ++k) {
    V right[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) right[v] = load<V>(b + k * b_stride + v * LANES);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const T left = a.data[row * a.row_stride + k * a.step];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[row][v] = multiply_add(left, right[v], sum[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(c + row * c_stride + v * LANES, sum[row][v]);
}

// C [rows, columns] = (add ? C : 0) + A [rows, depth] B [depth, columns], and visit(row) when the ROWS rows from `row`
// on are done, while L1 holds them. rows is a multiple of ROWS and columns of V's lanes: blocks are padded, so there
// are no tails.
template <class V, int ROWS, int VECTORS, class T, class Sum, class Visit>
inline void product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* b, int64_t b_stride, Sum* c,
                    int64_t c_stride, bool add, const Visit& visit) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  for (int64_t row = 0; row < rows; row += ROWS) {
    const Scalars<T> left{a.data + row * a.row_stride, a.row_stride, a.step};
    Sum* const out = c + row * c_stride;
    int64_t column = 0;
    for (; column + VECTORS * LANES <= columns; column += VECTORS * LANES)
      product_tile<V, ROWS, VECTORS>(depth, left, b + column, b_stride, out + column, c_stride, add);
    for (; column < columns; column += LANES)
      product_tile<V, ROWS, 1>(depth, left, b + column, b_stride, out + column, c_stride, add);
    visit(row);
  }
}

template <class V, int ROWS, int VECTORS, class T, class Sum>
inline void product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* b, int64_t b_stride, Sum* c,
                    int64_t c_stride, bool add) {
  product<V, ROWS, VECTORS>(rows, columns, depth, a, b, b_stride, c, c_stride, add, [](int64_t) {});
}

}  // namespace
}  // namespace cmi_fast
