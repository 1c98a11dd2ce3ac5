// Rows scaled to unit length. Norms neither overflow nor underflow; a zero row stays zero, NaN and inf give NaN.
#pragma once

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

template <class T>
inline T square_root(T x) {
  return sizeof(T) == 4 ? T(__builtin_sqrtf(float(x))) : T(__builtin_sqrt(double(x)));
}

template <class T>
inline T sum_of_squares(const T* row, int64_t d, T scale) {
  using V = Vector<T, WIDE>;
  constexpr int LANES = VectorOf<T, WIDE>::LANES;
  V sums{};
  int64_t j = 0;
  for (; j + LANES <= d; j += LANES) {
    const V x = load<V>(row + j) * scale;
    sums += x * x;
  }
  T sum = sum_lanes<T, WIDE>(sums)[0];
  for (; j < d; ++j) sum += (row[j] * scale) * (row[j] * scale);
  return sum;
}

// unit [d] = row / |row| for a row whose squares overflow, vanish or are not finite: it is brought near 1 first.
// Returns 1 / |row|.
template <class T>
__attribute__((noinline)) T unit_row_rescaled(const T* row, int64_t d, T* unit) {
  constexpr T smallest = sizeof(T) == 4 ? T(__FLT_MIN__) : T(__DBL_MIN__);
  T largest = 0;
  for (int64_t j = 0; j < d; ++j) {
    const T magnitude = row[j] < 0 ? -row[j] : row[j];
    if (magnitude > largest) largest = magnitude;
  }
  // A row holding NaN and zeros only is no zero row: its sum of squares is NaN whatever the scale.
  const T scale = 1 / (largest > smallest ? largest : smallest);
  const T square = sum_of_squares(row, d, scale);
  const T inverse = square == 0 ? T(0) : 1 / square_root(square);
  for (int64_t j = 0; j < d; ++j) unit[j] = (row[j] * scale) * inverse;
  return scale * inverse;
}

// unit [count, padded_d] = row(i) [d] / |row(i)| for i < count, zero beyond d; inverse [count] = 1 / |row|, which the
// backward needs (0 for a zero row). Stage by stage: the rows' chains of dependent instructions then overlap.
template <class T, class Row>
inline void unit_rows(const Row& row, int64_t count, int64_t d, int64_t padded_d, T* unit, T* inverse) {
  // Between these bounds a plain sum has lost nothing to overflow or to denormal squares.
  constexpr T low = sizeof(T) == 4 ? T(1e-20f) : T(1e-200), high = sizeof(T) == 4 ? T(1e30f) : T(1e300);
  using V = Vector<T, WIDE>;
  constexpr int LANES = VectorOf<T, WIDE>::LANES;
  bool safe = true;
  for (int64_t i = 0; i < count; ++i) {
    const T square = sum_of_squares<T>(row(i), d, T(1));
    safe = safe && square > low && square < high;
    inverse[i] = square;
  }
  for (int64_t i = 0; i < count; ++i) inverse[i] = 1 / square_root(inverse[i]);
  for (int64_t i = 0; i < count; ++i) {
    const T *from = row(i), scale = inverse[i];
    T* const to = unit + i * padded_d;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) store(to + j, load<V>(from + j) * scale);
    for (; j < d; ++j) to[j] = from[j] * scale;
    for (; j < padded_d; ++j) to[j] = 0;
  }
  if (safe) return;
  for (int64_t i = 0; i < count; ++i) {
    const T square = sum_of_squares<T>(row(i), d, T(1));
    if (!(square > low && square < high)) inverse[i] = unit_row_rescaled<T>(row(i), d, unit + i * padded_d);
  }
}

template <class T>
inline void unit_row(const T* row, int64_t d, int64_t padded_d, T* unit, T* inverse) {
  unit_rows([row](int64_t) { return row; }, 1, d, padded_d, unit, inverse);
}

}  // namespace
}  // namespace cmi_fast
