#include "cpu/kernels/table_gradient.h"

#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

// The first place in the sorted ids that is not before `id`.
inline int64_t lower_bound(const int64_t* ids, int64_t count, int64_t id) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool before = ids[low + half] < id;
    low += before ? half + 1 : 0;
    count = before ? count - half - 1 : half;
  }
  return low;
}

template <class T>
void sum_rows(const TableGradient<T>& gradient, int64_t begin, int64_t end) {
  using Wide = Vector<T, WIDE>;
  constexpr int64_t COLUMNS = 128;  // summed at a time
  const int64_t d = gradient.d;
  int64_t first = lower_bound(gradient.ids, gradient.count, begin);
  for (int64_t row = begin; row < end; ++row) {
    int64_t last = first;
    while (last < gradient.count && gradient.ids[last] == row) ++last;
    for (int64_t column = 0; column < d; column += COLUMNS) {
      const int64_t count = d - column < COLUMNS ? d - column : COLUMNS;
      T sum[COLUMNS] = {};
      for (int64_t i = first; i < last; ++i) add(gradient.rows + i * d + column, count, sum);
      if (gradient.stream) {
        T* const to = static_cast<T*>(gradient.table.data) + row * d + column;
        for (int64_t j = 0; j < count; j += VectorOf<T, WIDE>::LANES) store_streaming(to + j, load<Wide>(sum + j));
      } else {
        write_columns(sum, row, d, column, count, gradient.table);
      }
    }
    first = last;
  }
  finish_streaming();
}

}  // namespace

namespace CMI_FAST_LEVEL {
extern const TableGradientKernels table_gradient;
const TableGradientKernels table_gradient{sum_rows<float>, sum_rows<double>};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
