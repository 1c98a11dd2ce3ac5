// The gradient of a table from those of the items that read its rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/element.h"

namespace cmi_fast {

constexpr int32_t NOT_SHARED = -1;  // no other item reads this row of the table: its gradient goes straight there

template <class T>
struct TableGradient {
  const int32_t* readers;  // [V]: how many items read a row of the table
  const int32_t* end;      // [V]: where the row's gradients end in `shared`, if it has several readers
  const T* shared;         // [., d], in the order of the table's rows
  int64_t d;
  MutableRows table;  // [V, d]: sums, in the order of `shared`; zero for no reader; what one reader wrote stays
  bool stream;        // write rows of T past the caches: they are whole cache lines
};

struct TableGradientKernels {
  // The table's rows begin .. end.
  void (*float32)(const TableGradient<float>& gradient, int64_t begin, int64_t end);
  void (*float64)(const TableGradient<double>& gradient, int64_t begin, int64_t end);
};

}  // namespace cmi_fast
