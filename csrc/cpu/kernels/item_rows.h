// Items fetched ahead, and their gradients written past the caches, where these are larger than the caches.
#pragma once

#include "cpu/kernels/rows.h"
#include "cpu/kernels/sequences.h"

namespace cmi_fast {
namespace {

template <class T>
inline int64_t row_bytes(Element element, int64_t d) {
  return d * (element == Element::computed ? sizeof(T) : 2);
}

// Fetches into L2, while others are computed, `count` items of sequence b from `start` on, as far as it has them.
// Inlined, as gcc drops calls of a function that does nothing but prefetch.
template <class T>
__attribute__((always_inline)) inline void prefetch_items(ConstRows items, const Sequences& sequences, int64_t d,
                                                          int64_t b, int64_t start, int64_t count) {
  if (b >= sequences.batch) return;
  constexpr int64_t CACHE_LINE = 64;
  constexpr int L2 = 2;
  const int64_t bytes = row_bytes<T>(items.element, d), left = sequences.length(b) - start;
  const char* const from = static_cast<const char*>(items.data) + (sequences.first(b) + start) * bytes;
  for (int64_t byte = 0; byte < (count < left ? count : left) * bytes; byte += CACHE_LINE)
    __builtin_prefetch(from + byte, 0, L2);
}

// The gradient of the item `index`; to stream it, its rows must be whole cache lines.
template <class T>
inline void write_gradient(const T* row, int64_t index, int64_t d, MutableRows gradient, bool stream) {
  if (!stream) return write_row(row, index, d, gradient);
  T* const to = static_cast<T*>(gradient.data) + index * d;
  for (int64_t j = 0; j < d; j += VectorOf<T, WIDE>::LANES) store_streaming(to + j, load<Vector<T, WIDE>>(row + j));
}

// Zeros for the items begin .. end, which are padding.
template <class T>
inline void clear_gradients(int64_t begin, int64_t end, int64_t d, MutableRows gradient, bool stream) {
  const int64_t bytes = row_bytes<T>(gradient.element, d);
  char* const to = static_cast<char*>(gradient.data) + begin * bytes;
  if (!stream) return set_zero(to, (end - begin) * bytes);
  for (int64_t i = 0; i < (end - begin) * bytes; i += WIDE)
    store_streaming(reinterpret_cast<T*>(to + i), Vector<T, WIDE>{});
}

}  // namespace
}  // namespace cmi_fast
