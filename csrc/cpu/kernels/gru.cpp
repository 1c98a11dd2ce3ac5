// A GRU of which the last states are wanted. With the state h before an item x,
//   r = sigmoid(W_r [x h] + b_r),   z = sigmoid(W_z [x h] + b_z),   n = tanh(W_n x + b_n + r q),   q = U h + c,
// the next state is n + z (h - n). Given its cotangent D, the cotangents before the activations are
//   dn = D (1 - z) (1 - n^2),   dq = dn r,   dr = dn q r (1 - r),   dz = D (h - n) z (1 - z),
// from which one product gives what goes to h (beside D z), one what goes to x, and one each weight's gradient.
//
// A block of sequences, ordered by length, runs through time together: at every step those that have not ended are its
// first rows. What the backward needs of a step is saved in the order of the computation, so that it is read as a
// stream. The products that no state waits for (gradients of x and of the weights) are taken over many steps at once.
#include "cpu/kernels/gru.h"

#include "cpu/kernels/gru_items.h"
#include "cpu/kernels/gru_layout.h"
#include "cpu/kernels/gru_step.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

template <class T>
struct Loops {
  using Problem = Gru<T>;
  using Gradients = GruGradients<T>;
  using Shape = GruShape;
  using Packed = PackedGru<T>;
  using Sums = GruSums<T>;
  using Items = GruItems<T>;
  using Step = GruStep<T>;
  using V = Vector<T, WIDE>;

  // C [rows, columns] = (add ? C : 0) + A [rows, depth] B, B in panels.
  static void panel_product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* panels, T* c,
                            int64_t c_stride, bool add) {
    for (int64_t column = 0; column < columns; column += Packed::PANEL)
      product<V, TILE_ROWS, GRADIENT_VECTORS>(rows, columns - column < Packed::PANEL ? columns - column : Packed::PANEL,
                                              depth, a, panels + column * depth, Packed::PANEL, c + column, c_stride,
                                              add);
  }

  // Workspace of one thread: rows [x h], in the forward those of a step and of the next one; rows of gates; gradients
  // of x; of h, a row a sequence; an item as it is read.
  struct Workspace {
    T *inputs, *gates, *x_gradient, *h_gradient, *item;
    int64_t size;

    Workspace(const Shape& shape, T* memory) {
      size = place_buffers({PENDING * shape.input_stride, PENDING * shape.gate_stride, PENDING * shape.width,
                            GRU_BLOCK_MAX * shape.height, shape.width},
                           {&inputs, &gates, &x_gradient, &h_gradient, &item}, memory);
    }
  };
  static_assert(PENDING >= 2 * GRU_BLOCK_MAX);

  static int64_t workspace_size(int64_t d, int64_t hidden) { return Workspace(Shape(d, hidden), nullptr).size; }

  // How many sequences of a block are longer than `time`, `count` or fewer.
  static int64_t longer(const Problem& p, const int64_t* block, int64_t count, int64_t time) {
    while (count > 0 && p.sequences.length(block[count - 1]) <= time) --count;
    return count;
  }

  static void forward_block(const Problem& p, const Shape& shape, const Packed& packed, const int64_t* block,
                            int64_t count, MutableRows last, T* saved, const Workspace& w) {
    const int64_t stride = shape.input_stride, buffer = GRU_BLOCK_MAX * stride;
    T *inputs = w.inputs, *next = w.inputs + buffer;
    set_zero(inputs, 2 * buffer);
    for (int64_t time = 0; count > 0; ++time) {
      const int64_t active = longer(p, block, count, time);
      for (int64_t i = active; i < count; ++i) write_row(inputs + i * stride + shape.width, block[i], p.hidden, last);
      for (int64_t i = 0; i < active; ++i) {
        const int64_t row = p.sequences.first(block[i]) + time;
        Items::load(p, row, w.item, inputs + i * stride);
        if (time + 1 < p.sequences.length(block[i])) Items::prefetch(p, row + 1);
      }
      Step::advance(shape, packed, active, inputs, next, saved);
      if (saved) saved += active * SAVED * shape.height;
      T* const swapped = inputs;
      inputs = next;
      next = swapped;
      count = active;
    }
  }

  template <class Run>
  static void for_each_block(const Problem& p, int64_t begin, int64_t end, const Run& run) {
    for (int64_t start = begin; start < end; start += p.block)
      run(p.order + start, end - start < p.block ? end - start : p.block);
  }

  static int64_t first_saved(const Problem& p, const Shape& shape, const int64_t* block) {
    return p.first_saved[(block - p.order) / p.block] * SAVED * shape.height;
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, MutableRows last, T* saved, T* memory) {
    const Shape shape(p.d, p.hidden);
    const Packed packed(shape, const_cast<T*>(p.packed));
    const Workspace w(shape, memory);
    for_each_block(p, begin, end, [&](const int64_t* block, int64_t count) {
      forward_block(p, shape, packed, block, count, last, saved ? saved + first_saved(p, shape, block) : nullptr, w);
    });
  }

  // Rows whose cotangents are known, but not yet the gradients of their x and of the weights.
  struct Pending {
    int64_t count = 0;
    int64_t rows[PENDING];
    T inverse[PENDING];  // 1 / |item|, where items are normalised
  };

  static void finish_pending(const Problem& p, const Shape& shape, const Packed& packed, const Gradients& gradients,
                             const Workspace& w, Pending& pending) {
    const int64_t count = pending.count, gates = GATES * shape.height;
    pending.count = 0;
    if (gradients.items.data) {
      panel_product(round_up(count, TILE_ROWS), shape.width, gates, Scalars<T>{w.gates, shape.gate_stride, 1},
                    packed.gates_x, w.x_gradient, shape.width, false);
      for (int64_t i = 0; i < count; ++i)
        Items::store_gradient(p, pending.rows[i], w.inputs + i * shape.input_stride, pending.inverse[i],
                              w.x_gradient + i * shape.width, gradients);
    }
    if (!gradients.parameters) return;
    const Sums sums(shape, gradients.parameters);
    product<V, TILE_ROWS, GRADIENT_VECTORS>(gates, shape.width, count, Scalars<T>{w.gates, 1, shape.gate_stride},
                                            w.inputs, shape.input_stride, sums.weight_ih, shape.width, true);
    product<V, TILE_ROWS, GRADIENT_VECTORS>(
        gates, shape.height, count, Scalars<T>{w.gates + shape.height, 1, shape.gate_stride}, w.inputs + shape.width,
        shape.input_stride, sums.weight_hh, shape.height, true);
    for (int64_t i = 0; i < count; ++i) add(w.gates + i * shape.gate_stride, SLOTS * shape.height, sums.bias);
  }

  // The cotangents of one step of a block's first `active` sequences.
  static void step_back(const Problem& p, const Shape& shape, const Packed& packed, const int64_t* block,
                        int64_t active, int64_t time, const T* saved, const Workspace& w, Pending& pending) {
    T* const inputs = w.inputs + pending.count * shape.input_stride;
    T* const gates = w.gates + pending.count * shape.gate_stride;
    const int64_t size = SAVED * shape.height;
    for (int64_t i = 0; i < active; ++i) {
      const int64_t row = p.sequences.first(block[i]) + time;
      T* const input = inputs + i * shape.input_stride;
      pending.inverse[pending.count + i] = Items::load(p, row, w.item, input);
      if (time > 0) Items::prefetch(p, row - 1);
      Step::differentiate(shape, saved + i * size, -active * size, input + shape.width, gates + i * shape.gate_stride,
                          w.h_gradient + i * shape.height);
      pending.rows[pending.count + i] = row;
    }
    const int64_t rows = round_up(active, TILE_ROWS);
    // Sequences that have ended before share the last tile: nothing is added to their cotangents.
    for (int64_t i = active; i < rows; ++i) set_zero(gates + i * shape.gate_stride, SLOTS * shape.height);
    panel_product(rows, shape.height, GATES * shape.height, Scalars<T>{gates + shape.height, shape.gate_stride, 1},
                  packed.gates_h, w.h_gradient, shape.height, true);
    pending.count += active;
  }

  static void backward_block(const Problem& p, const Shape& shape, const Packed& packed, const int64_t* block,
                             int64_t count, const Gradients& gradients, const Workspace& w, Pending& pending) {
    set_zero(w.h_gradient, GRU_BLOCK_MAX * shape.height);
    for (int64_t i = 0; i < count; ++i) {
      T* const dh = w.h_gradient + i * shape.height;
      const T* row = read_row(gradients.last, block[i], p.hidden, dh);
      if (row != dh) copy(row, p.hidden, dh);
    }
    const T* saved = gradients.saved + first_saved(p, shape, block);
    for (int64_t i = 0; i < count; ++i) saved += p.sequences.length(block[i]) * SAVED * shape.height;
    for (int64_t time = p.sequences.length(block[0]) - 1; time >= 0; --time) {
      const int64_t active = longer(p, block, count, time);
      saved -= active * SAVED * shape.height;
      if (pending.count + round_up(active, TILE_ROWS) > PENDING)
        finish_pending(p, shape, packed, gradients, w, pending);
      step_back(p, shape, packed, block, active, time, saved, w, pending);
    }
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape shape(p.d, p.hidden);
    const Packed packed(shape, const_cast<T*>(p.packed));
    const Workspace w(shape, memory);
    Pending pending;
    set_zero(memory, w.size);  // the padding of rows stays zero
    if (gradients.parameters) set_zero(gradients.parameters, Sums::size(p.d, p.hidden));
    for_each_block(p, begin, end, [&](const int64_t* block, int64_t count) {
      backward_block(p, shape, packed, block, count, gradients, w, pending);
      if (gradients.items.data && !p.ids) Items::clear_padding(p, block, count, gradients);
    });
    finish_pending(p, shape, packed, gradients, w, pending);
    finish_streaming();
  }

  static int64_t saved_size(int64_t hidden) { return SAVED * round_up(hidden, PADDING); }

  static constexpr GruKernel<T> KERNEL{Packed::size, workspace_size, saved_size, Sums::size,
                                       Packed::pack, forward,        backward,   Sums::unpack};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const GruKernels gru;
const GruKernels gru{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
