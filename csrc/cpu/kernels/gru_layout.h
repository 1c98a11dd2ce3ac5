// How the GRU's kernel lays out what it works on: padded rows, packed weights, sums of the weights' gradients.
#pragma once

#include "cpu/kernels/gru.h"
#include "cpu/kernels/place_buffers.h"
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
constexpr int64_t SAVED = SLOTS + 1;          // an item's saved row is n, r, z, q and the state before it
constexpr int64_t X_SLOT[GATES] = {1, 2, 0};  // where torch's r, z, n are among x's three
constexpr int64_t H_SLOT[GATES] = {0, 1, 2};  // and among h's

struct GruShape {
  int64_t d, hidden;                  // given
  int64_t width, height;              // padded
  int64_t input_stride, gate_stride;  // of rows [x h] and of rows of gates

  GruShape(int64_t d, int64_t hidden)
      : d(d),
        hidden(hidden),
        width(round_up(d, PADDING)),
        height(round_up(hidden, PADDING)),
        input_stride(width + height + APART),
        gate_stride(SLOTS * height + APART) {}
};

// Biases of a row of gates; for the gates, weights [height / LANES, d or hidden, r z n, LANES], a vector after the
// other as a tile reads them; for the gradients, their transposes in panels of as many columns as a tile has, so that a
// panel stays in L1 while the rows pass; a row of parameters as it is read.
template <class T>
struct PackedGru {
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  static constexpr int64_t PANEL = GRADIENT_VECTORS * LANES;

  T *bias, *x_gates, *h_gates, *gates_x, *gates_h, *row;
  int64_t total;

  PackedGru(const GruShape& shape, T* memory) {
    const int64_t gates = GATES * shape.height;
    total = place_buffers(
        {SLOTS * shape.height, gates * shape.d, gates * shape.hidden, gates * round_up(shape.width, PANEL),
         gates * round_up(shape.height, PANEL), gates + shape.width},
        {&bias, &x_gates, &h_gates, &gates_x, &gates_h, &row}, memory);
  }

  static int64_t size(int64_t d, int64_t hidden) { return PackedGru(GruShape(d, hidden), nullptr).total; }

  static int64_t panel_place(int64_t depth, int64_t k, int64_t column) {
    return (column / PANEL * depth + k) * PANEL + column % PANEL;
  }

  static void pack_matrix(const GruShape& shape, ConstRows weight, int64_t columns, const int64_t* slots,
                          const PackedGru& packed, T* gate_weights, T* gradient_panels) {
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

  static void pack_bias(const GruShape& shape, ConstRows bias, const int64_t* slots, const PackedGru& packed, T* to) {
    if (!bias.data) return;
    const T* row = read_row(bias, 0, GATES * shape.hidden, packed.row);
    for (int64_t gate = 0; gate < GATES; ++gate)
      add(row + gate * shape.hidden, shape.hidden, to + slots[gate] * shape.height);
  }

  static void pack(const GruParameters<ConstRows>& parameters, int64_t d, int64_t hidden, T* memory) {
    const GruShape shape(d, hidden);
    const PackedGru packed(shape, memory);
    set_zero(memory, packed.total);
    pack_matrix(shape, parameters.weight_ih, d, X_SLOT, packed, packed.x_gates, packed.gates_x);
    pack_matrix(shape, parameters.weight_hh, hidden, H_SLOT, packed, packed.h_gates, packed.gates_h);
    pack_bias(shape, parameters.bias_ih, X_SLOT, packed, packed.bias);
    pack_bias(shape, parameters.bias_hh, H_SLOT, packed, packed.bias + shape.height);
  }
};

// Sums of the gradients of the weights [3 height, width or height], in the slots' order, and of a row of gates.
template <class T>
struct GruSums {
  T *weight_ih, *weight_hh, *bias;
  int64_t total;

  GruSums(const GruShape& shape, T* memory) {
    const int64_t gates = GATES * shape.height;
    total = place_buffers({gates * shape.width, gates * shape.height, SLOTS * shape.height},
                          {&weight_ih, &weight_hh, &bias}, memory);
  }

  static int64_t size(int64_t d, int64_t hidden) { return GruSums(GruShape(d, hidden), nullptr).total; }

  static void unpack_matrix(const GruShape& shape, const T* sum, int64_t stride, int64_t columns, const int64_t* slots,
                            MutableRows gradient) {
    if (!gradient.data) return;
    for (int64_t gate = 0; gate < GATES; ++gate)
      for (int64_t j = 0; j < shape.hidden; ++j)
        write_row(sum + (slots[gate] * shape.height + j) * stride, gate * shape.hidden + j, columns, gradient);
  }

  static void unpack_bias(const GruShape& shape, const T* sum, const int64_t* slots, MutableRows gradient) {
    if (!gradient.data) return;
    for (int64_t gate = 0; gate < GATES; ++gate)
      write_row(sum + slots[gate] * shape.height, gate, shape.hidden, gradient);
  }

  static void unpack(const T* sum, int64_t d, int64_t hidden, const GruParameters<MutableRows>& gradients) {
    const GruShape shape(d, hidden);
    const GruSums sums(shape, const_cast<T*>(sum));
    unpack_matrix(shape, sums.weight_ih, shape.width, d, X_SLOT, gradients.weight_ih);
    unpack_matrix(shape, sums.weight_hh, shape.height, hidden, H_SLOT, gradients.weight_hh);
    unpack_bias(shape, sums.bias, X_SLOT, gradients.bias_ih);
    unpack_bias(shape, sums.bias + shape.height, H_SLOT, gradients.bias_hh);
  }
};

}  // namespace
}  // namespace cmi_fast
