// Rows of a tensor whose element type is known at run time: kernels that spend their time elsewhere read and write the
// half types through here, and exist for float and double only.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/element.h"

namespace cmi_fast {
namespace {

template <class T, class Run>
inline void with_half(Element element, const Run& run) {
  static_assert(sizeof(T) == 4, "half types are computed in float");
  if (element == Element::bfloat16)
    run(BFloat16());
  else
    run(Half());
}

// Row `index` of `rows`: where it lies if its elements are T, otherwise widened to `buffer`.
template <class T>
inline const T* read_row(ConstRows rows, int64_t index, int64_t d, T* buffer) {
  if constexpr (sizeof(T) == 4) {
    if (rows.element != Element::computed) {
      with_half<T>(rows.element,
                   [&](auto type) { widen(static_cast<const decltype(type)*>(rows.data) + index * d, d, buffer); });
      return buffer;
    }
  }
  return static_cast<const T*>(rows.data) + index * d;
}

// To `count` elements of row `index`, from `column` on.
template <class T>
inline void write_columns(const T* from, int64_t index, int64_t d, int64_t column, int64_t count, MutableRows rows) {
  const int64_t place = index * d + column;
  if constexpr (sizeof(T) == 4) {
    if (rows.element != Element::computed) {
      with_half<T>(rows.element,
                   [&](auto type) { narrow(from, count, static_cast<decltype(type)*>(rows.data) + place); });
      return;
    }
  }
  copy(from, count, static_cast<T*>(rows.data) + place);
}

template <class T>
inline void write_row(const T* row, int64_t index, int64_t d, MutableRows rows) {
  write_columns(row, index, d, 0, d, rows);
}

// What the row would be if `element` held it: rounded, in place.
template <class T>
inline void round_row(Element element, int64_t d, T* row) {
  if constexpr (sizeof(T) == 4) {
    with_half<T>(element, [&](auto type) {
      for (int64_t j = 0; j < d; ++j) {
        narrow(row[j], &type);
        row[j] = widen(type);
      }
    });
  }
}

}  // namespace
}  // namespace cmi_fast
