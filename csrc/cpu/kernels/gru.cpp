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

#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

// Tiles: enough accumulators to hide the latency of their sums, few enough for the registers.
constexpr int TILE_ROWS = REGISTERS == 32 ? 8 : 4;
constexpr int GRADIENT_VECTORS = 2;
static_assert(GRU_BLOCK_STEP % TILE_ROWS == 0 && GRU_BLOCK_MAX % GRU_BLOCK_STEP == 0);

constexpr int64_t PADDING = 16;               // widths are multiples: whole vectors and whole tiles
constexpr int64_t APART = 16;                 // rows of a power of two would share the sets of the caches
constexpr int64_t PENDING = 128;              // rows that wait for the products over many steps
constexpr int64_t SLOTS = 4, GATES = 3;       // a row of gates is n, r, z, q: x gives the first three, h the last three
constexpr int64_t X_SLOT[GATES] = {1, 2, 0};  // where torch's r, z, n are among x's three
constexpr int64_t H_SLOT[GATES] = {0, 1, 2};  // and among h's

template <class T>
struct Loops {
  using Problem = Gru<T>;
  using Gradients = GruGradients<T>;
  using V = Vector<T, WIDE>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;

  struct Shape {
    int64_t d, hidden;                  // given
    int64_t width, height;              // padded
    int64_t input_stride, gate_stride;  // of rows [x h] and of rows of gates

    Shape(int64_t d, int64_t hidden)
        : d(d),
          hidden(hidden),
          width(round_up(d, PADDING)),
          height(round_up(hidden, PADDING)),
          input_stride(width + height + APART),
          gate_stride(SLOTS * height + APART) {}
  };

  // Weights of the gradients are in panels of as many columns as a tile has: a panel stays in L1 while the rows pass.
  static constexpr int64_t PANEL = GRADIENT_VECTORS * LANES;

  static int64_t panel_place(int64_t depth, int64_t k, int64_t column) {
    return (column / PANEL * depth + k) * PANEL + column % PANEL;
  }

  // C [rows, columns] = (add ? C : 0) + A [rows, depth] B, B in panels.
  static void panel_product(int64_t rows, int64_t columns, int64_t depth, Scalars<T> a, const T* panels, T* c,
                            int64_t c_stride, bool add) {
    for (int64_t column = 0; column < columns; column += PANEL)
      product<V, TILE_ROWS, GRADIENT_VECTORS>(rows, columns - column < PANEL ? columns - column : PANEL, depth, a,
                                              panels + column * depth, PANEL, c + column, c_stride, add);
  }

  // Points the buffers to consecutive places of `memory`, if there is one, and returns the size of them all.
  template <int COUNT>
  static int64_t place(const int64_t (&sizes)[COUNT], T** const (&buffers)[COUNT], T* memory) {
    int64_t total = 0;
    for (int i = 0; i < COUNT; ++i) {
      if (memory) *buffers[i] = memory + total;
      total += sizes[i];
    }
    return total;
  }

  // Biases of a row of gates; for the gates, weights as gates_tile reads them: [height / LANES, d or hidden, r z n,
  // LANES]; for the gradients, panels of their transposes; a row of parameters as it is read.
  struct Packed {
    T *bias, *x_gates, *h_gates, *gates_x, *gates_h, *row;
    int64_t size;

    Packed(const Shape& shape, T* memory) {
      const int64_t gates = GATES * shape.height;
      size = place({SLOTS * shape.height, gates * shape.d, gates * shape.hidden, gates * round_up(shape.width, PANEL),
                    gates * round_up(shape.height, PANEL), gates + shape.width},
                   {&bias, &x_gates, &h_gates, &gates_x, &gates_h, &row}, memory);
    }
  };

  static int64_t packed_size(int64_t d, int64_t hidden) { return Packed(Shape(d, hidden), nullptr).size; }

  static void pack_matrix(const Shape& shape, ConstRows weight, int64_t columns, const int64_t* slots,
                          const Packed& packed, T* gate_weights, T* gradient_panels) {
    const int64_t gates = GATES * shape.height;
    for (int64_t gate = 0; gate < GATES; ++gate)
      for (int64_t j = 0; j < shape.hidden; ++j) {
        const T* row = read_row(weight, gate * shape.hidden + j, columns, packed.row);
        const int64_t group = j / LANES, lane = j % LANES;
        for (int64_t k = 0; k < columns; ++k) {
          gate_weights[((group * columns + k) * GATES + gate) * LANES + lane] = row[k];
          gradient_panels[panel_place(gates, slots[gate] * shape.height + j, k)] = row[k];
        }
      }
  }

  static void pack_bias(const Shape& shape, ConstRows bias, const int64_t* slots, const Packed& packed, T* to) {
    if (!bias.data) return;
    const T* row = read_row(bias, 0, GATES * shape.hidden, packed.row);
    for (int64_t gate = 0; gate < GATES; ++gate)
      add(row + gate * shape.hidden, shape.hidden, to + slots[gate] * shape.height);
  }

  static void pack_weights(const GruParameters<ConstRows>& parameters, int64_t d, int64_t hidden, T* memory) {
    const Shape shape(d, hidden);
    const Packed packed(shape, memory);
    set_zero(memory, packed.size);
    pack_matrix(shape, parameters.weight_ih, d, X_SLOT, packed, packed.x_gates, packed.gates_x);
    pack_matrix(shape, parameters.weight_hh, hidden, H_SLOT, packed, packed.h_gates, packed.gates_h);
    pack_bias(shape, parameters.bias_ih, X_SLOT, packed, packed.bias);
    pack_bias(shape, parameters.bias_hh, H_SLOT, packed, packed.bias + shape.height);
  }

  // Workspace of one thread: rows [x h] and rows of gates; gradients of x; of h, a row a sequence.
  struct Workspace {
    T *inputs, *gates, *x_gradient, *h_gradient;
    int64_t size;

    Workspace(const Shape& shape, T* memory) {
      size = place({PENDING * shape.input_stride, PENDING * shape.gate_stride, PENDING * shape.width,
                    GRU_BLOCK_MAX * shape.height},
                   {&inputs, &gates, &x_gradient, &h_gradient}, memory);
    }
  };

  static int64_t workspace_size(int64_t d, int64_t hidden) { return Workspace(Shape(d, hidden), nullptr).size; }

  // Sums of the gradients of the weights [3 height, width or height], in the slots' order, and of a row of gates.
  struct Sums {
    T *weight_ih, *weight_hh, *bias;
    int64_t size;

    Sums(const Shape& shape, T* memory) {
      const int64_t gates = GATES * shape.height;
      size = place({gates * shape.width, gates * shape.height, SLOTS * shape.height}, {&weight_ih, &weight_hh, &bias},
                   memory);
    }
  };

  static int64_t gradient_size(int64_t d, int64_t hidden) { return Sums(Shape(d, hidden), nullptr).size; }

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

  // The gates at place j of a row, from what goes into their activations.
  static Activated activate(const T* row, int64_t height, int64_t j) {
    const V q = load<V>(row + 3 * height + j);
    V two[2] = {load<V>(row + height + j), load<V>(row + 2 * height + j)};
    const V r_in = two[0], z_in = two[1];
    exponentials(two, T(LOG2_E));
    const V r = sigmoid(r_in, two[0]), z = sigmoid(z_in, two[1]);
    const V n_in = load<V>(row + j) + r * q;
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

  // What goes into the activations of a tile of rows, of LANES columns from j on: x adds to n, r, z and h to r, z, q.
  static void gates_tile(const Shape& shape, const Packed& packed, int64_t j, const T* inputs, T* gates) {
    const int64_t height = shape.height;
    const auto bias = [&](int64_t slot) { return load<V>(packed.bias + slot * height + j); };
    V sum[TILE_ROWS][GATES];
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      sum[row][0] = bias(1);
      sum[row][1] = bias(2);
      sum[row][2] = bias(0);
    }
    accumulate(shape.d, inputs, shape.input_stride, packed.x_gates + j * shape.d * GATES, sum);
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row) {
      store(gates + row * shape.gate_stride + j, sum[row][2]);
      sum[row][2] = bias(3);
    }
    accumulate(shape.hidden, inputs + shape.width, shape.input_stride, packed.h_gates + j * shape.hidden * GATES, sum);
#pragma GCC unroll 8
    for (int row = 0; row < TILE_ROWS; ++row)
#pragma GCC unroll 4
      for (int gate = 0; gate < GATES; ++gate)
        store(gates + row * shape.gate_stride + (gate + 1) * height + j, sum[row][gate]);
  }

  // The same of `count` rows, rounded up to whole tiles, and all columns. A group's weights stay in L1 meanwhile.
  static void compute_gates(const Shape& shape, const Packed& packed, int64_t count, const T* inputs, T* gates) {
    for (int64_t j = 0; j < shape.height; j += LANES)
      for (int64_t row = 0; row < count; row += TILE_ROWS)
        gates_tile(shape, packed, j, inputs + row * shape.input_stride, gates + row * shape.gate_stride);
  }

  static void load_item(const Problem& p, int64_t row, T* to) {
    const T* item = read_row(p.items, row, p.d, to);
    if (item != to) copy(item, p.d, to);
  }

  // How many sequences of a block are longer than `time`, `count` or fewer.
  static int64_t longer(const Problem& p, const int64_t* block, int64_t count, int64_t time) {
    while (count > 0 && p.sequences.length(block[count - 1]) <= time) --count;
    return count;
  }

  static void forward_block(const Problem& p, const Shape& shape, const Packed& packed, const int64_t* block,
                            int64_t count, MutableRows last, T* states, const Workspace& w) {
    set_zero(w.inputs, GRU_BLOCK_MAX * shape.input_stride);
    int64_t active = longer(p, block, count, 0);
    for (int64_t time = 0; active > 0; active = longer(p, block, active, ++time)) {
      for (int64_t i = 0; i < active; ++i)
        load_item(p, p.sequences.first(block[i]) + time, w.inputs + i * shape.input_stride);
      compute_gates(shape, packed, active, w.inputs, w.gates);
      for (int64_t i = 0; i < active; ++i) {
        T* const h = w.inputs + i * shape.input_stride + shape.width;
        for (int64_t j = 0; j < shape.height; j += LANES) {
          const Activated g = activate(w.gates + i * shape.gate_stride, shape.height, j);
          store(h + j, g.n + g.z * (load<V>(h + j) - g.n));
        }
        copy(h, p.hidden, states + (p.sequences.first(block[i]) + time) * p.hidden);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      write_row(w.inputs + i * shape.input_stride + shape.width, block[i], p.hidden, last);
  }

  template <class Run>
  static void for_each_block(const Problem& p, int64_t begin, int64_t end, const Run& run) {
    for (int64_t start = begin; start < end; start += p.block)
      run(p.order + start, end - start < p.block ? end - start : p.block);
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, MutableRows last, T* states, T* memory) {
    const Shape shape(p.d, p.hidden);
    const Packed packed(shape, const_cast<T*>(p.packed));
    const Workspace w(shape, memory);
    for_each_block(p, begin, end, [&](const int64_t* block, int64_t count) {
      forward_block(p, shape, packed, block, count, last, states, w);
    });
  }

  // From what goes into a row's activations to its cotangent, in place; dh becomes what reaches the state before
  // directly.
  static void differentiate(const Shape& shape, const T* h, T* gates, T* dh) {
    const int64_t height = shape.height;
    for (int64_t j = 0; j < height; j += LANES) {
      const Activated g = activate(gates, height, j);
      const V cotangent = load<V>(dh + j), kept = cotangent * g.z;
      const V dn = (cotangent - kept) * (T(1) - g.n * g.n);
      store(gates + j, dn);
      store(gates + height + j, dn * g.q * g.r * (T(1) - g.r));
      store(gates + 2 * height + j, kept * (load<V>(h + j) - g.n) * (T(1) - g.z));
      store(gates + 3 * height + j, dn * g.r);
      store(dh + j, kept);
    }
  }

  // Rows whose cotangents are known, but not yet the gradients of their x and of the weights.
  struct Pending {
    int64_t count = 0;
    int64_t rows[PENDING];
  };

  static void finish_pending(const Problem& p, const Shape& shape, const Packed& packed, const Gradients& gradients,
                             const Workspace& w, Pending& pending) {
    const int64_t count = pending.count, gates = GATES * shape.height;
    pending.count = 0;
    if (gradients.items.data) {
      panel_product(round_up(count, TILE_ROWS), shape.width, gates, Scalars<T>{w.gates, shape.gate_stride, 1},
                    packed.gates_x, w.x_gradient, shape.width, false);
      for (int64_t i = 0; i < count; ++i)
        write_row(w.x_gradient + i * shape.width, pending.rows[i], p.d, gradients.items);
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
                        int64_t active, int64_t time, const Gradients& gradients, const Workspace& w,
                        Pending& pending) {
    T* const inputs = w.inputs + pending.count * shape.input_stride;
    T* const gates = w.gates + pending.count * shape.gate_stride;
    for (int64_t i = 0; i < active; ++i) {
      const int64_t row = p.sequences.first(block[i]) + time;
      T* const h = inputs + i * shape.input_stride + shape.width;
      load_item(p, row, inputs + i * shape.input_stride);
      if (time > 0)
        copy(gradients.states + (row - 1) * p.hidden, p.hidden, h);
      else
        set_zero(h, p.hidden);
      pending.rows[pending.count + i] = row;
    }
    compute_gates(shape, packed, active, inputs, gates);
    for (int64_t i = 0; i < active; ++i)
      differentiate(shape, inputs + i * shape.input_stride + shape.width, gates + i * shape.gate_stride,
                    w.h_gradient + i * shape.height);
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
    for (int64_t time = p.sequences.length(block[0]) - 1; time >= 0; --time) {
      const int64_t active = longer(p, block, count, time);
      if (pending.count + round_up(active, TILE_ROWS) > PENDING)
        finish_pending(p, shape, packed, gradients, w, pending);
      step_back(p, shape, packed, block, active, time, gradients, w, pending);
    }
  }

  static void clear_padding(const Problem& p, const int64_t* block, int64_t count, MutableRows gradient) {
    const int64_t bytes = p.d * (gradient.element == Element::computed ? sizeof(T) : 2);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t length = p.sequences.length(block[i]), row = p.sequences.first(block[i]) + length;
      set_zero(static_cast<char*>(gradient.data) + row * bytes, (p.sequences.rows(block[i]) - length) * bytes);
    }
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const Gradients& gradients, T* memory) {
    const Shape shape(p.d, p.hidden);
    const Packed packed(shape, const_cast<T*>(p.packed));
    const Workspace w(shape, memory);
    Pending pending;
    set_zero(memory, w.size);  // the padding of rows stays zero
    if (gradients.parameters) set_zero(gradients.parameters, gradient_size(p.d, p.hidden));
    for_each_block(p, begin, end, [&](const int64_t* block, int64_t count) {
      backward_block(p, shape, packed, block, count, gradients, w, pending);
      if (gradients.items.data) clear_padding(p, block, count, gradients.items);
    });
    finish_pending(p, shape, packed, gradients, w, pending);
  }

  static void unpack_matrix(const Shape& shape, const T* sum, int64_t stride, int64_t columns, const int64_t* slots,
                            MutableRows gradient) {
    if (!gradient.data) return;
    for (int64_t gate = 0; gate < GATES; ++gate)
      for (int64_t j = 0; j < shape.hidden; ++j)
        write_row(sum + (slots[gate] * shape.height + j) * stride, gate * shape.hidden + j, columns, gradient);
  }

  static void unpack_bias(const Shape& shape, const T* sum, const int64_t* slots, MutableRows gradient) {
    if (!gradient.data) return;
    for (int64_t gate = 0; gate < GATES; ++gate)
      write_row(sum + slots[gate] * shape.height, gate, shape.hidden, gradient);
  }

  static void unpack_gradients(const T* sum, int64_t d, int64_t hidden, const GruParameters<MutableRows>& gradients) {
    const Shape shape(d, hidden);
    const Sums sums(shape, const_cast<T*>(sum));
    unpack_matrix(shape, sums.weight_ih, shape.width, d, X_SLOT, gradients.weight_ih);
    unpack_matrix(shape, sums.weight_hh, shape.height, hidden, H_SLOT, gradients.weight_hh);
    unpack_bias(shape, sums.bias, X_SLOT, gradients.bias_ih);
    unpack_bias(shape, sums.bias + shape.height, H_SLOT, gradients.bias_hh);
  }

  static constexpr GruKernel<T> KERNEL{packed_size, workspace_size, gradient_size,   pack_weights,
                                       forward,     backward,       unpack_gradients};
};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const GruKernels gru;
const GruKernels gru{Loops<float>::KERNEL, Loops<double>::KERNEL};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
