// Eq. 1-3 in one pass over the items, a block of rows at a time; at the usual sizes all of a block stays in L1. An
// item's assignment does not depend on the view, so items are grouped by the views that hold them: each item is
// assigned once, each group pooled once, and a view is the sum of its groups.
//
// With unit rows v_i, unit categories c_k and scores s_ik = v_i . c_k the assignment is p_i = softmax(s_i / t) and the
// interest u_k = sum_i p_ik v_i. Given the cotangent U_k of u_k, with a_ik = v_i . U_k,
//   ds_ik = p_ik (a_ik - sum_l p_il a_il) / t,
//   dv_i = sum_k p_ik U_k + ds_ik c_k,    dc_k = sum_i ds_ik v_i,    dt = -sum_ik ds_ik s_ik / t,
// and v_i . dv_i = sum_k p_ik a_ik + ds_ik s_ik needs no further product: dx_i = (dv_i - v_i (v_i . dv_i)) / |x_i|.
#include "cpu/kernels/soft_assignment_pool.h"

#include "cpu/kernels/packed_categories.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/view_groups.h"

namespace cmi_fast {
namespace {

constexpr int BLOCK = 16;  // items: every matrix of a block stays in L1 at d = 64
// Tiles: enough accumulators to hide the latency of their sums, few enough for the registers. Blocks are padded to
// whole tiles of items; groups are small, so the backward's, with two vectors of categories at m = 8, has fewer rows.
constexpr int FORWARD_ROWS = 8;
constexpr int FORWARD_VECTORS = 1;
constexpr int BACKWARD_ROWS = 4;
constexpr int BACKWARD_VECTORS = 2;
constexpr int ITEM_VECTORS = REGISTERS == 32 ? 4 : 2;
constexpr int CATEGORY_VECTORS = REGISTERS == 32 ? 4 : 2;

template <class T>
struct Loops {
  using Problem = SoftAssignmentPool<T>;
  using Gradients = SoftAssignmentPoolGradients<T>;
  using Shape = PaddedShape<T>;
  using Packed = PackedCategories<T>;
  using Narrow = Vector<T, NARROW>;
  using Wide = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, NARROW>::LANES;
  static constexpr int WIDE_LANES = VectorOf<T, WIDE>::LANES;

  // Workspace of one thread: unit rows, item gradients [BLOCK, d]; 1 / |row| and v . dv [BLOCK]; scores and
  // assignment (backward: two of each, side by side) [BLOCK, 2m]; the rows [2m, d] that these multiply and their
  // transpose [d, 2m]; sums over items [m, d]; the interests of a sequence [view_count, m, d].
  struct Workspace {
    T *unit, *item_gradient, *inverse, *radial, *scores, *weights, *rows, *transposed, *sum, *pooled;

    Workspace(const Shape& shape, T* memory) {
      const int64_t m = shape.m, d = shape.d;
      const int64_t sizes[] = {BLOCK * d,     BLOCK * d, BLOCK,     BLOCK, BLOCK * 2 * m,
                               BLOCK * 2 * m, 2 * m * d, 2 * m * d, m * d};
      T** const buffers[] = {&unit, &item_gradient, &inverse, &radial, &scores, &weights, &rows, &transposed, &sum};
      for (int i = 0; i < 9; ++i) {
        *buffers[i] = memory;
        memory += sizes[i];
      }
      pooled = memory;
    }
  };

  static int64_t workspace_size(int64_t categories, int64_t dim, int64_t view_count) {
    const Shape shape(categories, dim);
    return 2 * BLOCK * (shape.d + 1) + 4 * BLOCK * shape.m + (5 + view_count) * shape.m * shape.d;
  }

  // Fetches into L2 the rows that items start .. start + count of sequence b read from the table: those of the next
  // sequence while one is computed. Inlined, as gcc drops calls of a function that does nothing but prefetch.
  __attribute__((always_inline)) static void prefetch_rows(const Problem& p, int64_t b, int64_t start, int64_t count) {
    if (!p.ids || b >= p.sequences.batch) return;
    constexpr int64_t CACHE_LINE = 64;
    constexpr int L2 = 2;
    const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
    const int64_t row_bytes = p.d * (p.items.element == Element::computed ? sizeof(T) : 2);
    for (int64_t i = start; i < start + count && i < length; ++i)
      for (int64_t byte = 0; byte < row_bytes; byte += CACHE_LINE)
        __builtin_prefetch(static_cast<const char*>(p.items.data) + p.ids[first + i] * row_bytes + byte, 0, L2);
  }

  // Unit rows of `count` items; returns the rows of the block, padded to whole tiles.
  template <int TILE_ROWS>
  static int64_t load_block(const Problem& p, const Shape& shape, const int64_t* rows, int64_t count,
                            const Workspace& w) {
    const T* items[BLOCK];
    for (int64_t i = 0; i < count; ++i) {
      T* const buffer = w.item_gradient + i * shape.d;  // nothing there yet
      items[i] = read_row(p.items, p.ids ? p.ids[rows[i]] : rows[i], p.d, buffer);
      if (p.pooled == Element::computed || p.pooled == p.items.element) continue;
      if (items[i] != buffer) copy(items[i], p.d, buffer);
      round_row(p.pooled, p.d, buffer);
      items[i] = buffer;
    }
    unit_rows([&](int64_t i) { return items[i]; }, count, p.d, shape.d, w.unit, w.inverse);
    const int64_t padded = round_up(count, TILE_ROWS);
    set_zero(w.unit + count * shape.d, (padded - count) * shape.d);  // tiles read them; nobody reads what comes out
    return padded;
  }

  // weights [count, m] = softmax(scores / t), 0 in the padding. Rows are `stride` apart. Stage by stage over the block:
  // the items' chains of dependent instructions then overlap.
  static void softmax(const Problem& p, const Shape& shape, int64_t count, const T* scores, T* weights,
                      int64_t stride) {
    const T* padding = Packed(shape, p.packed).padding;
    const int64_t m = shape.m;
    const T scale = p.inverse_temperature * T(LOG2_E);
    for (int64_t i = 0; i < count; ++i) {
      Narrow top = Narrow{} + Float<T>::LOWEST;
      for (int64_t k = 0; k < m; k += LANES) {
        const Narrow s = load<Narrow>(scores + i * stride + k) * scale + load<Narrow>(padding + k);
        store(weights + i * stride + k, s);
        top = larger(top, s);
      }
      top = reduce_lanes<T, NARROW>(top, larger<Narrow>);
      for (int64_t k = 0; k < m; k += LANES)
        store(weights + i * stride + k, load<Narrow>(weights + i * stride + k) - top);
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < m; k += LANES)
        store(weights + i * stride + k, exp2_nonpositive<T, NARROW>(load<Narrow>(weights + i * stride + k)));
    for (int64_t i = 0; i < count; ++i) {
      Narrow sum{};
      for (int64_t k = 0; k < m; k += LANES) sum += load<Narrow>(weights + i * stride + k);
      const Narrow inverse = T(1) / sum_lanes<T, NARROW>(sum);
      for (int64_t k = 0; k < m; k += LANES)
        store(weights + i * stride + k, load<Narrow>(weights + i * stride + k) * inverse);
    }
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, void* pooled, T* memory) {
    const Shape shape(p.categories, p.d);
    const Workspace w(shape, memory);
    const int64_t m = shape.m, d = shape.d;
    const T* transposed = Packed(shape, p.packed).transposed;
    const MutableRows out{pooled, p.pooled};
    for (int64_t b = begin; b < end; ++b) {
      ViewSet summed = 0;  // the group that w.sum holds
      const auto add_group_to_views = [&](ViewSet next) {
        for_each_view(summed, [&](int64_t view) { add(w.sum, m * d, w.pooled + view * m * d); });
        set_zero(w.sum, m * d);
        summed = next;
      };
      set_zero(w.pooled, p.view_count * m * d);
      for_each_chunk(p, b, [&](const int64_t* rows, const ViewSet* views, int64_t length) {
        int64_t start = 0;
        while (start < length && !views[start]) ++start;
        for (; start < length; start += BLOCK) {
          const int64_t count = length - start < BLOCK ? length - start : BLOCK;
          prefetch_rows(p, b + 1, start, count);
          const int64_t padded = load_block<FORWARD_ROWS>(p, shape, rows + start, count, w);
          product<Narrow, FORWARD_ROWS, FORWARD_VECTORS>(padded, m, d, Scalars<T>{w.unit, d, 1}, transposed, m,
                                                         w.scores, m, false);
          softmax(p, shape, count, w.scores, w.weights, m);
          for_each_group(views + start, 0, count, [&](ViewSet group, int64_t from, int64_t to) {
            if (group != summed) add_group_to_views(group);
            product<Wide, CATEGORY_ROWS, CATEGORY_VECTORS>(m, d, to - from, Scalars<T>{w.weights + from * m, 1, m},
                                                           w.unit + from * d, d, w.sum, d, true);
          });
        }
      });
      add_group_to_views(0);
      for (int64_t view = 0; view < p.view_count; ++view)
        for (int64_t k = 0; k < p.categories; ++k)
          write_row(w.pooled + (view * m + k) * d, (view * p.sequences.batch + b) * p.categories + k, p.d, out);
    }
  }

  // The cotangent of a group beside the categories: rows [U; C] and columns [U | C], zero-padded.
  static void load_cotangent(const Problem& p, const Shape& shape, const void* cotangent, int64_t b, ViewSet views,
                             const Workspace& w) {
    const int64_t stride = 2 * shape.m;
    const ConstRows from{cotangent, p.pooled};
    set_zero(w.rows, shape.m * shape.d);
    for_each_view(views, [&](int64_t view) {
      for (int64_t k = 0; k < p.categories; ++k)
        add(read_row(from, (view * p.sequences.batch + b) * p.categories + k, p.d, w.item_gradient), p.d,
            w.rows + k * shape.d);
    });
    for (int64_t k = 0; k < shape.m; k += LANES)
      for (int64_t j = 0; j < shape.d; j += LANES) {
        Narrow square[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES; ++i) square[i] = load<Narrow>(w.rows + (k + i) * shape.d + j);
        transpose<T, NARROW>(square);
#pragma GCC unroll 8
        for (int i = 0; i < LANES; ++i) store(w.transposed + (j + i) * stride + k, square[i]);
      }
  }

  // From scores [count, a | s] of a block to the weights [count, p | ds] of its gradient. Fills w.radial with v . dv
  // and returns sum_ik ds_ik s_ik.
  static double differentiate(const Problem& p, const Shape& shape, int64_t count, const Workspace& w) {
    const int64_t m = shape.m, stride = 2 * m;
    const T scale = p.inverse_temperature;
    softmax(p, shape, count, w.scores + m, w.weights, stride);
    double tangential = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T *a = w.scores + i * stride, *s = a + m;
      T *weight = w.weights + i * stride, *ds = weight + m;
      Narrow mean{};
      for (int64_t k = 0; k < m; k += LANES) mean += load<Narrow>(weight + k) * load<Narrow>(a + k);
      mean = sum_lanes<T, NARROW>(mean);
      Narrow along{};
      for (int64_t k = 0; k < m; k += LANES) {
        const Narrow slope = load<Narrow>(weight + k) * (load<Narrow>(a + k) - mean) * scale;
        store(ds + k, slope);
        along += slope * load<Narrow>(s + k);
      }
      along = sum_lanes<T, NARROW>(along);
      w.radial[i] = mean[0] + along[0];
      tangential += along[0];
    }
    return tangential;
  }

  static void store_item_gradient(const Problem& p, const Shape& shape, const int64_t* rows, int64_t count,
                                  const Workspace& w, const Gradients& gradients) {
    const bool items_computed = gradients.items.element == Element::computed;
    for (int64_t i = 0; i < count; ++i) {
      T* const dv = w.item_gradient + i * shape.d;
      const T *v = w.unit + i * shape.d, inverse = w.inverse[i], radial = w.radial[i];
      const int64_t row = rows[i], d = p.d, item = p.ids ? p.ids[row] : row;
      const int64_t place = gradients.place ? gradients.place[row] : NOT_SHARED;
      const bool in_place = items_computed || place != NOT_SHARED;
      T* const to = place != NOT_SHARED ? gradients.shared + place * d
                    : items_computed    ? static_cast<T*>(gradients.items.data) + item * d
                                        : dv;
      if (gradients.stream && in_place) {
        for (int64_t j = 0; j < d; j += WIDE_LANES)
          store_streaming(to + j, (load<Wide>(dv + j) - load<Wide>(v + j) * radial) * inverse);
        continue;
      }
#pragma omp simd
      for (int64_t j = 0; j < d; ++j) to[j] = (dv[j] - v[j] * radial) * inverse;
      if (!in_place) write_row(dv, item, d, gradients.items);
    }
  }

  static void clear_item_gradient(const Problem& p, int64_t row, int64_t count, const Gradients& gradients) {
    const bool computed = gradients.items.element == Element::computed;
    const int64_t bytes = computed ? sizeof(T) : 2;
    char* const to = static_cast<char*>(gradients.items.data) + row * p.d * bytes;
    if (!computed || !gradients.stream) return set_zero(to, count * p.d * bytes);
    for (int64_t i = 0; i < count * p.d * bytes; i += WIDE) store_streaming(reinterpret_cast<T*>(to + i), Wide{});
  }

  // The gradients of a block of one group; returns sum_ik ds_ik s_ik.
  static double differentiate_block(const Problem& p, const Shape& shape, const int64_t* rows, int64_t count,
                                    const Gradients& gradients, const Workspace& w) {
    const int64_t m = shape.m, d = shape.d;
    const int64_t padded = load_block<BACKWARD_ROWS>(p, shape, rows, count, w);
    product<Narrow, BACKWARD_ROWS, BACKWARD_VECTORS>(padded, 2 * m, d, Scalars<T>{w.unit, d, 1}, w.transposed, 2 * m,
                                                     w.scores, 2 * m, false);
    const double tangential = differentiate(p, shape, count, w);
    if (gradients.categories)
      product<Wide, CATEGORY_ROWS, CATEGORY_VECTORS>(m, d, count, Scalars<T>{w.weights + m, 1, 2 * m}, w.unit, d, w.sum,
                                                     d, true);
    if (gradients.items.data) {
      product<Wide, BACKWARD_ROWS, ITEM_VECTORS>(padded, d, 2 * m, Scalars<T>{w.weights, 2 * m, 1}, w.rows, d,
                                                 w.item_gradient, d, false);
      store_item_gradient(p, shape, rows, count, w, gradients);
    }
    return tangential;
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape shape(p.categories, p.d);
    const Workspace w(shape, memory);
    const int64_t m = shape.m, d = shape.d;
    const Packed packed(shape, p.packed);
    const bool every_row = gradients.items.data && !gradients.place;  // those of no view, and the padding
    set_zero(w.sum, m * d);
    copy(packed.rows, m * d, w.rows + m * d);
    for (int64_t j = 0; j < d; ++j) {
      set_zero(w.transposed + j * 2 * m, m);
      copy(packed.transposed + j * m, m, w.transposed + j * 2 * m + m);
    }
    double tangential = 0;  // one number for all items: wider than they are
    for (int64_t b = begin; b < end; ++b) {
      for_each_chunk(p, b, [&](const int64_t* rows, const ViewSet* views, int64_t length) {
        for_each_group(views, 0, length, [&](ViewSet group, int64_t from, int64_t to) {
          if (!group) {
            for (int64_t i = from; every_row && i < to; ++i) clear_item_gradient(p, rows[i], 1, gradients);
            return;
          }
          load_cotangent(p, shape, gradients.pooled, b, group, w);
          for (int64_t start = from; start < to; start += BLOCK) {
            const int64_t count = to - start < BLOCK ? to - start : BLOCK;
            prefetch_rows(p, b + 1, start, count);
            tangential += differentiate_block(p, shape, rows + start, count, gradients, w);
          }
        });
      });
      const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
      if (every_row) clear_item_gradient(p, first + length, p.sequences.rows(b) - length, gradients);
    }
    finish_streaming();
    if (gradients.categories)
      for (int64_t k = 0; k < p.categories; ++k) copy(w.sum + k * d, p.d, gradients.categories + k * p.d);
    if (gradients.temperature) *gradients.temperature = T(-tangential * p.inverse_temperature);
  }

  static void unpack_category_gradient(const Problem& p, const T* sum, void* gradient) {
    Packed(Shape(p.categories, p.d), p.packed).write_gradient(sum, p.categories, p.d, {gradient, p.pooled});
  }

  static constexpr SoftAssignmentPoolKernel<T> KERNEL{Packed::size, workspace_size, Packed::pack,
                                                      forward,      backward,       unpack_category_gradient};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const SoftAssignmentPoolKernels soft_assignment_pool;
const SoftAssignmentPoolKernels soft_assignment_pool{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
