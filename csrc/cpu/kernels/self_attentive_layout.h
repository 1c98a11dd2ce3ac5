// What lies where in the self-attentive pooling's memory: packed parameters, sums of their gradients, a thread's
// workspace.
#pragma once

#include "cpu/kernels/place_buffers.h"
#include "cpu/kernels/self_attentive_pool.h"
#include "cpu/kernels/transpose.h"

namespace cmi_fast {
namespace {

constexpr int64_t BLOCK = 32;  // items
constexpr int64_t PANEL = 64;  // columns of the hidden layer
// Tiles: enough accumulators to hide the latency of their sums, few enough for the registers.
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = REGISTERS == 32 ? 4 : 2;
constexpr int NARROW = WIDE < 32 ? WIDE : 32;  // of vectors over the interests: they are few
static_assert(BLOCK % TILE_ROWS == 0 && PANEL % TILE_ROWS == 0);

template <class T>
struct SelfAttentivePoolLayout {
  using Sizes = SelfAttentivePoolSizes;
  using V = Vector<T, WIDE>;
  using N = Vector<T, NARROW>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  static constexpr int NARROW_LANES = VectorOf<T, NARROW>::LANES;

  // Everything padded with zeros, which add nothing.
  struct Shape {
    int64_t k, h, d, places, rows;

    explicit Shape(const Sizes& sizes)
        : k(round_up(sizes.interests, NARROW_LANES > TILE_ROWS ? NARROW_LANES : TILE_ROWS)),
          h(round_up(sizes.hidden, PANEL)),
          d(round_up(sizes.d, LANES)),
          places(sizes.places),
          rows(round_up(sizes.longest, TILE_ROWS)) {}
  };

  // W' in panels [h / PANEL, d, PANEL], W [h, d], queries [k, h], bias [h], positions [places, d].
  struct Packed {
    T *panels, *weight, *queries, *bias, *positions;
    int64_t size;

    Packed(const Shape& s, const T* memory) {
      size = place_buffers({s.h * s.d, s.h * s.d, s.k * s.h, s.h, s.places * s.d},
                           {&panels, &weight, &queries, &bias, &positions}, const_cast<T*>(memory));
    }
  };

  // Sums of gradients: of W [h, d], queries [k, h], bias [h], positions [places, d].
  struct Sums {
    T *weight, *queries, *bias, *positions;
    int64_t size;

    Sums(const Shape& s, const T* memory) {
      size = place_buffers({s.h * s.d, s.k * s.h, s.h, s.places * s.d}, {&weight, &queries, &bias, &positions},
                           const_cast<T*>(memory));
    }
  };

  // Of one thread: the items of a sequence and their keys [rows, d], which without positions are the items; the scores
  // and weights [rows, k]; a panel of the hidden layer and its gradient; sums of each lane for the scores
  // [BLOCK, k, LANES]; items' gradient; interests or their cotangent [k, d], and its transpose.
  struct Workspace {
    T *items{}, *keys{};
    T *scores, *weights, *hidden, *hidden_gradient, *lanes, *item_gradient, *pooled, *transposed;
    int64_t size;

    Workspace(const Shape& s, T* memory) {
      size = place_buffers(
          {s.rows * s.d, s.places ? s.rows * s.d : 0, s.rows * s.k, s.rows * s.k, BLOCK * PANEL, BLOCK * PANEL,
           BLOCK * s.k * LANES, BLOCK * s.d, s.k * s.d, s.k * s.d},
          {&items, &keys, &scores, &weights, &hidden, &hidden_gradient, &lanes, &item_gradient, &pooled, &transposed},
          memory);
      if (!s.places) keys = items;
    }
  };

  static int64_t packed_size(const Sizes& sizes) { return Packed(Shape(sizes), nullptr).size; }
  static int64_t workspace_size(const Sizes& sizes) { return Workspace(Shape(sizes), nullptr).size; }
  static int64_t gradient_size(const Sizes& sizes) { return Sums(Shape(sizes), nullptr).size; }

  static void copy_rows(const T* from, int64_t count, int64_t width, int64_t from_stride, int64_t to_stride, T* to) {
    for (int64_t i = 0; i < count; ++i) copy(from + i * from_stride, width, to + i * to_stride);
  }

  static void pack(const SelfAttentivePoolParameters<const T>& parameters, const Sizes& sizes, T* memory) {
    const Shape s(sizes);
    const Packed packed(s, memory);
    const int64_t hidden = sizes.hidden, d = sizes.d;
    set_zero(memory, packed.size);
    copy_rows(parameters.weight, hidden, d, d, s.d, packed.weight);
    for (int64_t j = 0; j < hidden; j += PANEL)
      transpose_matrix(parameters.weight + j * d, hidden - j < PANEL ? hidden - j : PANEL, d, d,
                       packed.panels + j * s.d, PANEL);
    copy_rows(parameters.queries, sizes.interests, hidden, hidden, s.h, packed.queries);
    if (parameters.bias) copy(parameters.bias, hidden, packed.bias);
    if (parameters.positions) copy_rows(parameters.positions, sizes.places, d, d, s.d, packed.positions);
  }

  static void unpack_gradients(const T* sum, const Sizes& sizes, const SelfAttentivePoolParameters<T>& gradients) {
    const Shape s(sizes);
    const Sums sums(s, sum);
    const int64_t hidden = sizes.hidden, d = sizes.d;
    if (gradients.weight) copy_rows(sums.weight, hidden, d, s.d, d, gradients.weight);
    if (gradients.queries) copy_rows(sums.queries, sizes.interests, hidden, s.h, hidden, gradients.queries);
    if (gradients.bias) copy(sums.bias, hidden, gradients.bias);
    if (gradients.positions) copy_rows(sums.positions, sizes.places, d, s.d, d, gradients.positions);
  }
};

}  // namespace
}  // namespace cmi_fast
