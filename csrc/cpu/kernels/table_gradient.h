// The gradient of a table from those of the rows that were read from it.
#pragma once

#include "cpu/kernels/element.h"

namespace cmi_fast {

template <class T>
struct TableGradient {
  const T* rows;       // [count, d]
  const int64_t* ids;  // [count], the row of the table that each was read from; sorted
  int64_t count, d;
  MutableRows table;  // [V, d]: sums, in the order of rows; zero where none was read
  bool stream;        // write it past the caches: a row is whole cache lines
};

struct TableGradientKernels {
  // The table's rows begin .. end.
  void (*float32)(const TableGradient<float>& gradient, int64_t begin, int64_t end);
  void (*float64)(const TableGradient<double>& gradient, int64_t begin, int64_t end);
};

}  // namespace cmi_fast
