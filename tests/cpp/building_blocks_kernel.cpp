// Compiled once per ISA level, like the kernels, and under their rules.
#include "building_blocks.h"
#include "cpu/kernels/convert.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

constexpr int NARROW = WIDE < 32 ? WIDE : 32;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2, NARROW_VECTORS = VECTORS / 2;  // as many as kernels use

template <class T>
struct Blocks {
  static constexpr int LANES = VectorOf<T, WIDE>::LANES, NARROW_LANES = VectorOf<T, NARROW>::LANES;

  template <int BYTES, int ROWS, int VECTORS>
  static void multiply(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row_stride, int64_t a_step,
                       const T* b, int64_t b_stride, T* c, int64_t c_stride, bool add) {
    product<Vector<T, BYTES>, ROWS, VECTORS>(rows, columns, depth, Scalars<T>{a, a_row_stride, a_step}, b, b_stride, c,
                                             c_stride, add);
  }

  static void exp2(const T* x, int64_t count, T* y) {
    for (int64_t i = 0; i < count; i += LANES) store(y + i, exp2_nonpositive<T, WIDE>(load<Vector<T, WIDE>>(x + i)));
  }

  template <int BYTES>
  static void sum(const T* x, T* sums) {
    store(sums, sum_lanes<T, BYTES>(load<Vector<T, BYTES>>(x)));
  }

  static void unit(const T* rows, int64_t count, int64_t d, int64_t padded_d, T* unit, T* inverse) {
    unit_rows([&](int64_t i) { return rows + i * d; }, count, d, padded_d, unit, inverse);
  }

  static constexpr BuildingBlocks<T> ALL{
      LANES, NARROW_LANES, 4,           8,   multiply<WIDE, 4, VECTORS>, multiply<NARROW, 8, NARROW_VECTORS>,
      exp2,  sum<WIDE>,    sum<NARROW>, unit};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const AllBuildingBlocks building_blocks;
const AllBuildingBlocks building_blocks{Blocks<float>::ALL, Blocks<double>::ALL, {widen, narrow}, {widen, narrow}};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
