#include "cpu/kernels/table_gradient.h"

#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

template <class T>
void sum_rows(const TableGradient<T>& gradient, int64_t begin, int64_t end) {
  using Wide = Vector<T, WIDE>;
  constexpr int64_t COLUMNS = 128;  // summed at a time
  const int64_t d = gradient.d;
  const bool stream = gradient.stream && gradient.table.element == Element::computed;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t readers = gradient.readers[row];
    if (readers == 1) continue;
    const int64_t last = gradient.end[row], first = last - readers;
    for (int64_t column = 0; column < d; column += COLUMNS) {
      const int64_t count = d - column < COLUMNS ? d - column : COLUMNS;
      T sum[COLUMNS] = {};
      for (int64_t i = first; i < last; ++i) add(gradient.shared + i * d + column, count, sum);
      if (stream) {
        T* const to = static_cast<T*>(gradient.table.data) + row * d + column;
        for (int64_t j = 0; j < count; j += VectorOf<T, WIDE>::LANES) store_streaming(to + j, load<Wide>(sum + j));
      } else {
        write_columns(sum, row, d, column, count, gradient.table);
      }
    }
  }
  finish_streaming();
}

}  // namespace

namespace CMI_FAST_LEVEL {
extern const TableGradientKernels table_gradient;
const TableGradientKernels table_gradient{sum_rows<float>, sum_rows<double>};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
