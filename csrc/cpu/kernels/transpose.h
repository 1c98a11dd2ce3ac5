// Transposition of matrices, a square of a vector's size at a time.
#pragma once

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

// to [columns, rows] = the transpose of from [rows, columns]; rows lie from_stride and to_stride apart.
template <class T>
inline void transpose_matrix(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to,
                             int64_t to_stride) {
  constexpr int BYTES = WIDE < 32 ? WIDE : 32, SIDE = VectorOf<T, BYTES>::LANES;
  using V = Vector<T, BYTES>;
  const int64_t whole_rows = rows / SIDE * SIDE, whole_columns = columns / SIDE * SIDE;
  for (int64_t i = 0; i < whole_rows; i += SIDE)
    for (int64_t j = 0; j < whole_columns; j += SIDE) {
      V square[SIDE];
#pragma GCC unroll 8
      for (int k = 0; k < SIDE; ++k) square[k] = load<V>(from + (i + k) * from_stride + j);
      transpose<T, BYTES>(square);
#pragma GCC unroll 8
      for (int k = 0; k < SIDE; ++k) store(to + (j + k) * to_stride + i, square[k]);
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace
}  // namespace cmi_fast
