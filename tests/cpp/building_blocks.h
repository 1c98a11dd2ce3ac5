// The functions that kernels share, with an interface by which a test reaches them at every ISA level.
#pragma once

#include <cstdint>

#include "cpu/kernels/half.h"

namespace cmi_fast {

template <class T>
struct BuildingBlocks {
  // One matrix product: element (row, k) of A lies at a[row * a_row_stride + k * a_step].
  using Product = void (*)(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row_stride,
                           int64_t a_step, const T* b, int64_t b_stride, T* c, int64_t c_stride, bool add);

  int64_t lanes, narrow_lanes;
  int64_t product_rows, narrow_product_rows;  // of which `rows` must be a multiple; `columns` of the lanes
  Product product, narrow_product;
  void (*exp2_nonpositive)(const T* x, int64_t count, T* y);  // count: a multiple of the lanes
  void (*sum_lanes)(const T* x, T* sums);                     // `lanes` numbers each
  void (*narrow_sum_lanes)(const T* x, T* sums);
  void (*unit_rows)(const T* rows, int64_t count, int64_t d, int64_t padded_d, T* unit, T* inverse);
};

template <class T>
struct Conversions {
  void (*widen)(const T* from, int64_t count, float* to);
  void (*narrow)(const float* from, int64_t count, T* to);
};

struct AllBuildingBlocks {
  BuildingBlocks<float> float32;
  BuildingBlocks<double> float64;
  Conversions<BFloat16> bfloat16;
  Conversions<Half> float16;
};

}  // namespace cmi_fast
