// A GRU's items, rows of their own or of a table, as they are or at unit length; and where their gradients go.
#pragma once

#include "cpu/kernels/gru_layout.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

template <class T>
struct GruItems {
  using V = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;

  static int64_t stored_row(const Gru<T>& p, int64_t row) { return p.ids ? p.ids[row] : row; }

  static int64_t element_bytes(Element element) { return element == Element::computed ? sizeof(T) : 2; }

  // to [d] = the item x, or x / |x|; buffer [d] is for what is widened. Returns 1 / |x|, or 1.
  static T load(const Gru<T>& p, int64_t row, T* buffer, T* to) {
    const T* item = read_row(p.items, stored_row(p, row), p.d, buffer);
    T inverse = 1;
    if (p.normalize)
      unit_row(item, p.d, p.d, to, &inverse);
    else
      copy(item, p.d, to);
    return inverse;
  }

  static void prefetch(const Gru<T>& p, int64_t row) {
    const int64_t bytes = p.d * element_bytes(p.items.element);
    const char* const item = static_cast<const char*>(p.items.data) + stored_row(p, row) * bytes;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(item + i);
  }

  // From dx of the item as it was loaded, `item`, to that of the stored row: (dx - x (x . dx)) / |x| for a unit row x.
  static void through_normalization(int64_t d, const T* item, T inverse, T* dx) {
    T radial = 0;
#pragma omp simd reduction(+ : radial)
    for (int64_t j = 0; j < d; ++j) radial += item[j] * dx[j];
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) dx[j] = (dx[j] - item[j] * radial) * inverse;
  }

  static void store_gradient(const Gru<T>& p, int64_t row, const T* item, T inverse, T* dx,
                             const GruGradients<T>& gradients) {
    if (p.normalize) through_normalization(p.d, item, inverse, dx);
    const int64_t place = gradients.place ? gradients.place[row] : NOT_SHARED;
    const bool shared = place != NOT_SHARED;
    const MutableRows rows = shared ? MutableRows{gradients.shared, Element::computed} : gradients.items;
    const int64_t index = shared ? place : stored_row(p, row);
    if (!gradients.stream || rows.element != Element::computed) return write_row(dx, index, p.d, rows);
    T* const to = static_cast<T*>(rows.data) + index * p.d;
    for (int64_t j = 0; j < p.d; j += LANES) store_streaming(to + j, cmi_fast::load<V>(dx + j));
  }

  static void clear_padding(const Gru<T>& p, const int64_t* block, int64_t count, const GruGradients<T>& gradients) {
    const int64_t bytes = p.d * element_bytes(gradients.items.element);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t length = p.sequences.length(block[i]), row = p.sequences.first(block[i]) + length;
      const int64_t size = (p.sequences.rows(block[i]) - length) * bytes;
      char* const to = static_cast<char*>(gradients.items.data) + row * bytes;
      if (!gradients.stream) set_zero(to, size);
      for (int64_t place = 0; gradients.stream && place < size; place += WIDE)
        store_streaming(reinterpret_cast<T*>(to + place), V{});
    }
  }
};

}  // namespace
}  // namespace cmi_fast
