// The categories of the pooling as its products read them: unit rows, padded with zeros, which add nothing.
#pragma once

#include "cpu/kernels/rows.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

// Assignments are vectors over the categories; half the widest vector wastes fewer lanes at the usual m = 8.
constexpr int NARROW = WIDE < 32 ? WIDE : 32;
constexpr int CATEGORY_ROWS = 4;  // of a tile

template <class T>
struct PaddedShape {
  int64_t m, d;

  PaddedShape(int64_t categories, int64_t dim)
      : m(round_up(categories, LANES > CATEGORY_ROWS ? LANES : CATEGORY_ROWS)),
        d(round_up(dim, VectorOf<T, WIDE>::LANES)) {}

 private:
  static constexpr int LANES = VectorOf<T, NARROW>::LANES;
};

// Rows [m, d] and their transpose [d, m]; 1 / |row| [m]; what is added to the scores [m] so that padding gets no
// weight: 0, then the lowest number.
template <class T>
struct PackedCategories {
  T *rows, *transposed, *inverse, *padding;
  int64_t stride;

  PackedCategories(const PaddedShape<T>& shape, const T* memory)
      : rows(const_cast<T*>(memory)),
        transposed(rows + shape.m * shape.d),
        inverse(transposed + shape.m * shape.d),
        padding(inverse + shape.m),
        stride(shape.d) {}

  static int64_t size(int64_t categories, int64_t dim) {
    const PaddedShape<T> shape(categories, dim);
    return 2 * shape.m * shape.d + 2 * shape.m;
  }

  static void pack(ConstRows categories, int64_t m, int64_t dim, T* memory) {
    const PaddedShape<T> shape(m, dim);
    const PackedCategories packed(shape, memory);
    T* const buffer = packed.transposed;  // filled last
    set_zero(memory, size(m, dim));
    for (int64_t k = 0; k < m; ++k)
      unit_row(read_row(categories, k, dim, buffer), dim, shape.d, packed.rows + k * shape.d, packed.inverse + k);
    for (int64_t k = m; k < shape.m; ++k) packed.padding[k] = Float<T>::LOWEST;
    for (int64_t j = 0; j < shape.d; ++j)
      for (int64_t k = 0; k < shape.m; ++k) packed.transposed[j * shape.m + k] = packed.rows[k * shape.d + j];
  }

  // Through the normalisation: (g - c (c . g)) / |category| for g the rows of sum [m, dim]. The last to read `packed`.
  void write_gradient(const T* sum, int64_t m, int64_t dim, MutableRows gradient) const {
    T* const buffer = transposed;
    for (int64_t k = 0; k < m; ++k) {
      const T *g = sum + k * dim, *c = rows + k * stride;
      T radial = 0;
      for (int64_t j = 0; j < dim; ++j) radial += c[j] * g[j];
      for (int64_t j = 0; j < dim; ++j) buffer[j] = (g[j] - c[j] * radial) * inverse[k];
      write_row(buffer, k, dim, gradient);
    }
  }
};

}  // namespace
}  // namespace cmi_fast
