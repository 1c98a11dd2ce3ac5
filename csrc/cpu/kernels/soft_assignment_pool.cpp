// Eq. 1-3 in one pass over the items, a block of rows at a time, everything of a block in L1.
//
// With unit rows v_i, unit categories c_k and scores s_ik = v_i . c_k the assignment is p_i = softmax(s_i / t) and the
// interest u_k = sum_i p_ik v_i. Given the cotangent U_k of u_k, with a_ik = v_i . U_k,
//   ds_ik = p_ik (a_ik - sum_l p_il a_il) / t,
//   dv_i = sum_k p_ik U_k + ds_ik c_k,    dc_k = sum_i ds_ik v_i,    dt = -sum_ik ds_ik s_ik / t,
// and v_i . dv_i = sum_k p_ik a_ik + ds_ik s_ik needs no further product: dx_i = (dv_i - v_i (v_i . dv_i)) / |x_i|.
#include "cpu/kernels/soft_assignment_pool.h"

#include "cpu/kernels/product.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

constexpr int BLOCK = 16;  // items: every matrix of a block stays in L1 at d = 64
// Assignments are vectors over the categories; half the widest vector wastes fewer lanes at the usual m = 8.
constexpr int NARROW = WIDE < 32 ? WIDE : 32;
constexpr int ITEM_ROWS = REGISTERS == 32 ? 8 : 4;
constexpr int ITEM_VECTORS = 2;
constexpr int SCORE_ROWS = 8;
constexpr int CATEGORY_ROWS = 4;
constexpr int CATEGORY_VECTORS = REGISTERS == 32 ? 4 : 2;

template <class T>
struct Loops {
  using Narrow = Vector<T, NARROW>;
  using Wide = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, NARROW>::LANES;

  // Padded sizes. Padding rows of items and categories are zero, so they add nothing to any product.
  struct Shape {
    int64_t m, d;
    Shape(int64_t categories, int64_t dim)
        : m(round_up(categories, LANES > CATEGORY_ROWS ? LANES : CATEGORY_ROWS)),
          d(round_up(dim, VectorOf<T, WIDE>::LANES)) {}
  };

  // Packed categories: rows [m, d], their transpose [d, m], 1 / |row| [m].
  static int64_t packed_size(int64_t categories, int64_t dim) {
    const Shape shape(categories, dim);
    return 2 * shape.m * shape.d + shape.m;
  }

  static void pack_categories(const T* categories, int64_t m, int64_t dim, T* packed) {
    const Shape shape(m, dim);
    T* transposed = packed + shape.m * shape.d;
    T* inverse = transposed + shape.m * shape.d;
    for (int64_t k = 0; k < shape.m; ++k) {
      T* row = packed + k * shape.d;
      inverse[k] = 0;
      if (k < m)
        inverse[k] = unit_row(categories + k * dim, dim, shape.d, row);
      else
        for (int64_t j = 0; j < shape.d; ++j) row[j] = 0;
      for (int64_t j = 0; j < shape.d; ++j) transposed[j * shape.m + k] = row[j];
    }
  }

  // Workspace of one thread: unit rows, item gradients [BLOCK, d]; 1 / |row| and v . dv [BLOCK]; scores and
  // assignment (backward: two of each, side by side) [BLOCK, 2m]; the rows [2m, d] that these multiply and their
  // transpose [d, 2m]; sums over items [m, d].
  struct Workspace {
    T *unit, *item_gradient, *inverse, *radial, *scores, *weights, *rows, *transposed, *sum;

    Workspace(const Shape& shape, T* memory) {
      const int64_t m = shape.m, d = shape.d;
      const int64_t sizes[] = {BLOCK * d, BLOCK * d, BLOCK, BLOCK, BLOCK * 2 * m, BLOCK * 2 * m, 2 * m * d, 2 * m * d};
      T** const buffers[] = {&unit, &item_gradient, &inverse, &radial, &scores, &weights, &rows, &transposed};
      for (int i = 0; i < 8; ++i) {
        *buffers[i] = memory;
        memory += sizes[i];
      }
      sum = memory;
    }
  };

  static int64_t workspace_size(int64_t categories, int64_t dim) {
    const Shape shape(categories, dim);
    return 2 * BLOCK * (shape.d + 1) + 4 * BLOCK * shape.m + 5 * shape.m * shape.d;
  }

  // Unit rows of the items first .. first + count; returns the rows of the block, padded for the product tiles.
  static int64_t load_block(const SoftAssignmentPool<T>& p, const Shape& shape, int64_t first, int64_t count,
                            const Workspace& w) {
    const int64_t rows = round_up(count, SCORE_ROWS);
    for (int64_t i = 0; i < count; ++i)
      w.inverse[i] = unit_row(p.items + (first + i) * p.d, p.d, shape.d, w.unit + i * shape.d);
    for (int64_t i = count * shape.d; i < rows * shape.d; ++i) w.unit[i] = 0;
    return rows;
  }

  // p [m] = softmax(s [m] / t); lanes from p.categories on are padding and get 0.
  static void softmax(const SoftAssignmentPool<T>& p, const Shape& shape, const T* scores, T* weights) {
    const auto larger = [](Narrow a, Narrow b) { return a > b ? a : b; };
    const auto add = [](Narrow a, Narrow b) { return a + b; };
    constexpr T lowest = sizeof(T) == 4 ? T(-__FLT_MAX__) : T(-__DBL_MAX__);
    Narrow top = Narrow{} + lowest;
    for (int64_t k = 0; k < shape.m; k += LANES) {
      Narrow s = load<Narrow>(scores + k) * p.inverse_temperature;
      for (int lane = 0; lane < LANES; ++lane)
        if (k + lane >= p.categories) s[lane] = lowest;
      store(weights + k, s);
      top = larger(top, s);
    }
    top = reduce_lanes<T, NARROW>(top, larger);
    Narrow sum{};
    for (int64_t k = 0; k < shape.m; k += LANES) {
      const Narrow e = exp_nonpositive<T, NARROW>(load<Narrow>(weights + k) - top);
      store(weights + k, e);
      sum += e;
    }
    const Narrow scale = T(1) / reduce_lanes<T, NARROW>(sum, add);
    for (int64_t k = 0; k < shape.m; k += LANES) store(weights + k, load<Narrow>(weights + k) * scale);
  }

  static void forward(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end, T* pooled, T* memory) {
    const Shape shape(p.categories, p.d);
    const Workspace w(shape, memory);
    const T* transposed = p.packed + shape.m * shape.d;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      for (int64_t i = 0; i < shape.m * shape.d; ++i) w.sum[i] = 0;
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t count = length - start < BLOCK ? length - start : BLOCK;
        const int64_t rows = load_block(p, shape, first + start, count, w);
        product<Narrow, SCORE_ROWS, 1>(rows, shape.m, shape.d, Scalars<T>{w.unit, shape.d, 1}, transposed, shape.m,
                                       w.scores, shape.m, false);
        for (int64_t i = 0; i < count; ++i) softmax(p, shape, w.scores + i * shape.m, w.weights + i * shape.m);
        product<Wide, CATEGORY_ROWS, CATEGORY_VECTORS>(shape.m, shape.d, count, Scalars<T>{w.weights, 1, shape.m},
                                                       w.unit, shape.d, w.sum, shape.d, true);
      }
      for (int64_t k = 0; k < p.categories; ++k)
        for (int64_t j = 0; j < p.d; ++j) pooled[(b * p.categories + k) * p.d + j] = w.sum[k * shape.d + j];
    }
  }

  // The cotangent of one sequence beside the categories: rows [U; C] and columns [U | C], zero-padded.
  static void load_cotangent(const SoftAssignmentPool<T>& p, const Shape& shape, const T* cotangent,
                             const Workspace& w) {
    for (int64_t k = 0; k < p.categories; ++k) {
      for (int64_t j = 0; j < p.d; ++j) w.rows[k * shape.d + j] = cotangent[k * p.d + j];
      for (int64_t j = 0; j < p.d; ++j) w.transposed[j * 2 * shape.m + k] = cotangent[k * p.d + j];
    }
  }

  // From scores [a | s] of one item to the weights [p | ds] of its gradient. Returns {v . dv, sum_k ds_k s_k}.
  struct Projections {
    T radial, tangential;
  };
  static Projections differentiate(const SoftAssignmentPool<T>& p, const Shape& shape, const T* scores, T* weights) {
    const auto add = [](Narrow a, Narrow b) { return a + b; };
    const T *a = scores, *s = scores + shape.m;
    T* ds = weights + shape.m;
    softmax(p, shape, s, weights);
    Narrow mean{};
    for (int64_t k = 0; k < shape.m; k += LANES) mean += load<Narrow>(weights + k) * load<Narrow>(a + k);
    mean = reduce_lanes<T, NARROW>(mean, add);
    Narrow along{};
    for (int64_t k = 0; k < shape.m; k += LANES) {
      const Narrow slope = load<Narrow>(weights + k) * (load<Narrow>(a + k) - mean) * p.inverse_temperature;
      store(ds + k, slope);
      along += slope * load<Narrow>(s + k);
    }
    along = reduce_lanes<T, NARROW>(along, add);
    return {mean[0] + along[0], along[0]};
  }

  static void store_item_gradient(const SoftAssignmentPool<T>& p, const Shape& shape, int64_t count, const Workspace& w,
                                  T* gradient) {
    for (int64_t i = 0; i < count; ++i) {
      const T *dv = w.item_gradient + i * shape.d, *v = w.unit + i * shape.d;
      const T inverse = w.inverse[i], radial = w.radial[i];
#pragma omp simd
      for (int64_t j = 0; j < p.d; ++j) gradient[i * p.d + j] = (dv[j] - v[j] * radial) * inverse;
    }
  }

  static void backward(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end,
                       const SoftAssignmentPoolGradients<T>& gradients, T* memory) {
    const Shape shape(p.categories, p.d);
    const Workspace w(shape, memory);
    const int64_t m = shape.m, d = shape.d;
    const T* category_columns = p.packed + m * d;
    for (int64_t i = 0; i < m * d; ++i) w.sum[i] = 0;
    for (int64_t i = 0; i < m * d; ++i) w.rows[i] = 0;
    for (int64_t i = 0; i < m * d; ++i) w.rows[m * d + i] = p.packed[i];
    for (int64_t j = 0; j < d; ++j)
      for (int64_t k = 0; k < m; ++k) {
        w.transposed[j * 2 * m + k] = 0;
        w.transposed[j * 2 * m + m + k] = category_columns[j * m + k];
      }
    double tangential = 0;  // one number for all items: wider than they are
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      load_cotangent(p, shape, gradients.pooled + b * p.categories * p.d, w);
      for (int64_t start = 0; start < length; start += BLOCK) {
        const int64_t count = length - start < BLOCK ? length - start : BLOCK;
        const int64_t rows = load_block(p, shape, first + start, count, w);
        product<Narrow, SCORE_ROWS, 1>(rows, 2 * m, d, Scalars<T>{w.unit, d, 1}, w.transposed, 2 * m, w.scores, 2 * m,
                                       false);
        for (int64_t i = 0; i < count; ++i) {
          const auto along = differentiate(p, shape, w.scores + i * 2 * m, w.weights + i * 2 * m);
          w.radial[i] = along.radial;
          tangential += along.tangential;
        }
        if (gradients.categories)
          product<Wide, CATEGORY_ROWS, CATEGORY_VECTORS>(m, d, count, Scalars<T>{w.weights + m, 1, 2 * m}, w.unit, d,
                                                         w.sum, d, true);
        if (gradients.items) {
          product<Wide, ITEM_ROWS, ITEM_VECTORS>(rows, d, 2 * m, Scalars<T>{w.weights, 2 * m, 1}, w.rows, d,
                                                 w.item_gradient, d, false);
          store_item_gradient(p, shape, count, w, gradients.items + (first + start) * p.d);
        }
      }
      if (gradients.items)
        for (int64_t i = (first + length) * p.d; i < (first + p.sequences.rows(b)) * p.d; ++i) gradients.items[i] = 0;
    }
    if (gradients.categories)
      for (int64_t k = 0; k < p.categories; ++k)
        for (int64_t j = 0; j < p.d; ++j) gradients.categories[k * p.d + j] = w.sum[k * d + j];
    if (gradients.temperature) *gradients.temperature = T(-tangential * p.inverse_temperature);
  }

  static void unpack_category_gradient(const SoftAssignmentPool<T>& p, const T* sum, T* gradient) {
    const Shape shape(p.categories, p.d);
    const T* inverse = p.packed + 2 * shape.m * shape.d;
    for (int64_t k = 0; k < p.categories; ++k) {
      const T *g = sum + k * p.d, *c = p.packed + k * shape.d;
      T radial = 0;
      for (int64_t j = 0; j < p.d; ++j) radial += c[j] * g[j];
      for (int64_t j = 0; j < p.d; ++j) gradient[k * p.d + j] = (g[j] - c[j] * radial) * inverse[k];
    }
  }

  static constexpr SoftAssignmentPoolKernel<T> KERNEL{packed_size, workspace_size, pack_categories,
                                                      forward,     backward,       unpack_category_gradient};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const SoftAssignmentPoolKernels soft_assignment_pool;
const SoftAssignmentPoolKernels soft_assignment_pool{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
