// A GRU of which the last states are wanted. With the state h before an item x,
//   r = sigmoid(W_r [x h] + b_r),   z = sigmoid(W_z [x h] + b_z),   n = tanh(W_n x + b_n + r q),   q = U h + c,
// the next state is n + z (h - n). Given its cotangent D, the cotangents before the activations are
//   dn = D (1 - z) (1 - n^2),   dq = dn r,   dr = dn q r (1 - r),   dz = D (h - n) z (1 - z),
// from which one product gives what goes to h (beside D z), one what goes to x, and one each weight's gradient.
//
// A block of sequences, ordered by length, runs through time together: at every step those that have not ended are its
// first rows. Only states are stored; the backward computes the gates again. The products that no state waits for
// (gradients of x and of the weights) are taken over many steps at once.
#include "cpu/kernels/gru.h"

#include "cpu/kernels/gru_layout.h"
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
  using V = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;

  // C [rows, columns] = (add ? C : 0) + A [rows, depth] B, B in panels.
  static void panel_product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* panels, T* c,
                            int64_t c_stride, bool add) {
    for (int64_t column = 0; column < columns; column += Packed::PANEL)
      product<V, TILE_ROWS, GRADIENT_VECTORS>(rows, columns - column < Packed::PANEL ? columns - column : Packed::PANEL,
                                              depth, a, panels + column * depth, Packed::PANEL, c + column, c_stride,
                                              add);
  }

  // Workspace of one thread: rows [x h], in the forward those of a step and of the next one; rows of gates; gradients
  // of x; of h, a row a sequence.
  struct Workspace {
    T *inputs, *gates, *x_gradient, *h_gradient;
    int64_t size;

    Workspace(const Shape& shape, T* memory) {
      size = place_buffers({PENDING * shape.input_stride, PENDING * shape.gate_stride, PENDING * shape.width,
                            GRU_BLOCK_MAX * shape.height},
                           {&inputs, &gates, &x_gradient, &h_gradient}, memory);
    }
  };
  static_assert(PENDING >= 2 * GRU_BLOCK_MAX);

  static int64_t workspace_size(int64_t d, int64_t hidden) { return Workspace(Shape(d, hidden), nullptr).size; }

  // 2^(-|x| factor), of which sigmoid and tanh are made.
  template <int COUNT>
  static void exponentials(V (&x)[COUNT], T factor) {
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) x[i] = (x[i] < 0 ? x[i] : -x[i]) * factor;
    exp2_nonpositive<T, WIDE>(x);
  }

  static V sigmoid(V x, V exponential) {
    const V inverse = T(1) / (T(1) + exponential);
    return x < 0 ? exponential * inverse : inverse;
  }

  struct Activated {
    V r, z, n, q;
  };

  // From what goes into the activations.
  static Activated activate(V n_in, V r_in, V z_in, V q) {
    V two[2] = {r_in, z_in};
    exponentials(two, T(LOG2_E));
    const V r = sigmoid(r_in, two[0]), z = sigmoid(z_in, two[1]);
    n_in += r * q;
    V one[1] = {n_in};
    exponentials(one, T(2 * LOG2_E));
    const V n = (T(1) - one[0]) / (T(1) + one[0]);
    return {r, z, n_in < 0 ? -n : n, q};
  }

  // sum += a [TILE_ROWS, depth] weights [depth, 3, LANES]
  __attribute__((always_inline)) static inline void accumulate(int64_t depth, const T* a, int64_t stride,
                                                               const T* weights, V (&sum)[TILE_ROWS][GATES]) {
    for (int64_t k = 0; k < depth; ++k) {
      V right[GATES];
#pragma GCC unroll 4
      for (int gate = 0; gate < GATES; ++gate) right[gate] = load<V>(weights + (k * GATES + gate) * LANES);
#pragma GCC unroll 8
      for (int row = 0; row < TILE_ROWS; ++row) {
        const T left = a[row * stride + k];
#pragma GCC unroll 4
        for (int gate = 0; gate < GATES; ++gate) sum[row][gate] += left * right[gate];
      }
    }
  }

  // LANES columns, from j on, of the states after a tile of rows [x h], of which `count` count. x adds to n, r, z and h
  // to r, z, q.
  static void tile_states(const Shape& shape, const Packed& packed, int64_t j, int64_t count, const T* inputs, T* next,
                          T* saved) {
    const int64_t height = shape.height, stride = shape.input_stride;
    const auto bias = [&](int64_t slot) { return load<V>(packed.bias + slot * height + j); };
    V sum[TILE_ROWS][GATES], n[TILE_ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      sum[row][0] = bias(1);
      sum[row][1] = bias(2);
      sum[row][2] = bias(0);
    }
    accumulate(shape.d, inputs, stride, packed.x_gates + j * shape.d * GATES, sum);
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      n[row] = sum[row][2];
      sum[row][2] = bias(3);
    }
    accumulate(shape.hidden, inputs + shape.width, stride, packed.h_gates + j * shape.hidden * GATES, sum);
    V rzq[TILE_ROWS][GATES];
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row)
#pragma GCC unroll 4
      for (int gate = 0; gate < GATES; ++gate) rzq[row][gate] = sum[row][gate];
    for (int64_t row = 0; row < count; ++row) {
      const Activated g = activate(n[row], rzq[row][0], rzq[row][1], rzq[row][2]);
      const V h = load<V>(inputs + row * stride + shape.width + j);
      store(next + row * stride + shape.width + j, g.n + g.z * (h - g.n));
      if (!saved) continue;
      T* const to = saved + row * SAVED * height + j;
      store(to, g.n);
      store(to + height, g.r);
      store(to + 2 * height, g.z);
      store(to + 3 * height, g.q);
      store(to + 4 * height, h);
    }
  }

  // The states after `active` rows [x h] become the h of the rows `next`. A group's weights stay in L1 meanwhile.
  static void step(const Shape& shape, const Packed& packed, int64_t active, const T* inputs, T* next, T* saved) {
    for (int64_t j = 0; j < shape.height; j += LANES)
      for (int64_t row = 0; row < active; row += TILE_ROWS)
        tile_states(shape, packed, j, active - row < TILE_ROWS ? active - row : TILE_ROWS,
                    inputs + row * shape.input_stride, next + row * shape.input_stride,
                    saved ? saved + row * SAVED * shape.height : nullptr);
  }

  static void load_item(const Problem& p, int64_t row, T* to) {
    const T* item = read_row(p.items, row, p.d, to);
    if (item != to) copy(item, p.d, to);
  }

  static void prefetch_item(const Problem& p, int64_t row) {
    const int64_t bytes = p.d * (p.items.element == Element::computed ? sizeof(T) : 2);
    const char* const item = static_cast<const char*>(p.items.data) + row * bytes;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(item + i);
  }

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
        load_item(p, row, inputs + i * stride);
        prefetch_item(p, row + 1);
      }
      step(shape, packed, active, inputs, next, saved);
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

  // From a saved row to the cotangents before its activations, and to the state h before it; dh becomes what reaches
  // that state directly. Fetches the row `ahead` numbers on.
  static void differentiate(const Shape& shape, const T* saved, int64_t ahead, T* h, T* gates, T* dh) {
    const int64_t height = shape.height;
    for (int64_t j = 0; j < height; j += LANES) {
      const auto read = [&](int64_t slot) {
        __builtin_prefetch(saved + ahead + slot * height + j);
        return load<V>(saved + slot * height + j);
      };
      const V n = read(0), r = read(1), z = read(2), q = read(3), before = read(4);
      const V cotangent = load<V>(dh + j), kept = cotangent * z;
      const V dn = (cotangent - kept) * (T(1) - n * n), dq = dn * r;
      store(gates + j, dn);
      store(gates + height + j, dq * q * (T(1) - r));
      store(gates + 2 * height + j, kept * (before - n) * (T(1) - z));
      store(gates + 3 * height + j, dq);
      store(dh + j, kept);
      store(h + j, before);
    }
  }

  // Rows whose cotangents are known, but not yet the gradients of their x and of the weights.
  struct Pending {
    int64_t count = 0;
    int64_t rows[PENDING];
  };

  static void write_item_gradient(const Problem& p, int64_t row, const T* from, const Gradients& gradients) {
    if (!gradients.stream) return write_row(from, row, p.d, gradients.items);
    T* const to = static_cast<T*>(gradients.items.data) + row * p.d;
    for (int64_t j = 0; j < p.d; j += LANES) store_streaming(to + j, load<V>(from + j));
  }

  static void finish_pending(const Problem& p, const Shape& shape, const Packed& packed, const Gradients& gradients,
                             const Workspace& w, Pending& pending) {
    const int64_t count = pending.count, gates = GATES * shape.height;
    pending.count = 0;
    if (gradients.items.data) {
      panel_product(round_up(count, TILE_ROWS), shape.width, gates, Scalars<T>{w.gates, shape.gate_stride, 1},
                    packed.gates_x, w.x_gradient, shape.width, false);
      for (int64_t i = 0; i < count; ++i)
        write_item_gradient(p, pending.rows[i], w.x_gradient + i * shape.width, gradients);
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
      load_item(p, row, input);
      prefetch_item(p, row - 1);
      differentiate(shape, saved + i * size, -active * size, input + shape.width, gates + i * shape.gate_stride,
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

  static void clear_padding(const Problem& p, const int64_t* block, int64_t count, const Gradients& gradients) {
    const int64_t bytes = p.d * (gradients.items.element == Element::computed ? sizeof(T) : 2);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t length = p.sequences.length(block[i]), row = p.sequences.first(block[i]) + length;
      const int64_t size = (p.sequences.rows(block[i]) - length) * bytes;
      char* const to = static_cast<char*>(gradients.items.data) + row * bytes;
      if (!gradients.stream) set_zero(to, size);
      for (int64_t place = 0; gradients.stream && place < size; place += WIDE)
        store_streaming(reinterpret_cast<T*>(to + place), V{});
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
      if (gradients.items.data) clear_padding(p, block, count, gradients);
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
