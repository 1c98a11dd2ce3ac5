// The rows of nt_xent_loss as its products read them, packed tile by tile, and the products themselves.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/nt_xent_loss.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/unit_rows.h"

namespace cmi_fast {
namespace {

constexpr int64_t TILE = 64;  // rows: the tiles of a step stay in L2, what a product streams in L1
constexpr int ROWS = 4;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2;

template <class T>
inline const T* input_row(const NtXentLoss<T>& p, int64_t i) {
  return i < p.pairs ? p.first + i * p.d : p.second + (i - p.pairs) * p.d;
}

template <class T>
inline void transpose(const T* from, int64_t rows, int64_t columns, T* to) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) to[j * rows + i] = from[i * columns + j];
}

// Unit rows in the type that they are summed in.
template <class T>
struct UnitPanels {
  using C = Compute<T>;
  using V = Vector<C, WIDE>;
  using Problem = NtXentLoss<T>;
  static constexpr bool FACTORS = false;

  static int64_t width(int64_t d) { return round_up(d, VectorOf<C, WIDE>::LANES); }
  static int64_t size(int64_t d) { return 2 * TILE * width(d); }  // of a tile's panels, as numbers of type C
  static C* rows(const Problem& p, int64_t tile) { return p.panels + tile * size(p.d); }  // [TILE, width]
  // The same transposed, times log2(e) / t.
  static C* columns(const Problem& p, int64_t tile) { return rows(p, tile) + TILE * width(p.d); }

  static const C* row(const Problem& p, int64_t i) { return rows(p, i / TILE) + i % TILE * width(p.d); }

  static void pack(const Problem& p, int64_t tile) {
    const int64_t d = p.d, wide = width(d);
    C *const row = rows(p, tile), *const column = columns(p, tile);
    set_zero(row, TILE * wide);
    for (int64_t i = 0; i < TILE && tile * TILE + i < 2 * p.pairs; ++i) {
      C* const from = p.normalize ? column : row + i * wide;  // columns are written last
      widen(input_row(p, tile * TILE + i), d, from);
      if (p.normalize) unit_row(from, d, wide, row + i * wide, p.inverse + tile * TILE + i);
    }
    transpose(row, TILE, wide, column);
    const C scale = p.inverse_temperature * C(LOG2_E);
    for (int64_t k = 0; k < wide * TILE; ++k) column[k] *= scale;
  }

  // The scores [TILE, TILE] of the rows of tile a with those of tile b; visit(row) as in `product`.
  template <class Visit>
  static void products(const Problem& p, int64_t a, int64_t b, C* scores, const Visit& visit) {
    const int64_t wide = width(p.d);
    product<V, ROWS, VECTORS>(TILE, TILE, wide, Scalars<C>{rows(p, a), wide, 1}, columns(p, b), TILE, scores, TILE,
                              false, visit);
  }

  // From the pairs' weights [TILE, TILE]: adds their products with the rows of b to the gradient of a, and the other
  // way round.
  static void add_gradient(const Problem& p, int64_t a, int64_t b, C* weights, C*) {
    const int64_t wide = width(p.d);
    const auto add = [&](int64_t to, Scalars<C> left, int64_t from) {
      product<V, ROWS, VECTORS>(TILE, wide, TILE, left, rows(p, from), wide, p.gradient + to * TILE * wide, wide, true);
    };
    add(a, {weights, TILE, 1}, b);
    if (a != b) add(b, {weights, 1, TILE}, a);
  }
};

template <class T>
struct PanelsOf {
  using type = UnitPanels<T>;
};

#if defined(__AVX512BF16__)
// A row that is read as unit * factor.
struct ScaledRow {
  const BFloat16* values;
  float factor;
  float operator[](int64_t j) const { return widen(values[j]) * factor; }
};

// The input rows themselves in bfloat16, times a power of two each where they are to have unit length: all products are
// exact. What is left of the norm, the row's factor, is applied to the scores. (Rounded unit rows would have ten times
// the error.) Every panel holds pairs of numbers that one instruction multiplies and sums.
struct BFloat16Panels {
  using C = float;
  using V = BFloat16Pairs;
  using Problem = NtXentLoss<BFloat16>;
  static constexpr int LANES = VectorOf<float, WIDE>::LANES;
  static constexpr bool FACTORS = true;

  static int64_t width(int64_t d) { return round_up(d, LANES); }
  static int64_t size(int64_t d) { return 3 * TILE * width(d) / 2; }
  static BFloat16Pair* panel(const Problem& p, int64_t tile, int64_t which) {
    return (BFloat16Pair*)(p.panels + tile * size(p.d)) + which * TILE * width(p.d) / 2;
  }
  static BFloat16Pair* rows(const Problem& p, int64_t tile) { return panel(p, tile, 0); }     // [TILE, width / 2]
  static BFloat16Pair* columns(const Problem& p, int64_t tile) { return panel(p, tile, 1); }  // the same transposed
  static BFloat16Pair* stacked(const Problem& p, int64_t tile) { return panel(p, tile, 2); }  // [TILE / 2, width]

  static ScaledRow row(const Problem& p, int64_t i) {
    const BFloat16* const values = (const BFloat16*)rows(p, i / TILE);
    return {values + i % TILE * width(p.d), p.factors[i]};
  }

  // Brings the row's largest magnitude between 2 and 4, or as near to it as a float's exponent goes. Returns the
  // factor.
  static float pack_row(const Problem& p, int64_t i, BFloat16* row) {
    const BFloat16* const from = input_row(p, i);
    if (!p.normalize) {
      copy(from, p.d, row);
      return 1;
    }
    uint32_t largest = 1 << 7;  // the bits of magnitudes are ordered as they are; this is the smallest normal number
    for (int64_t j = 0; j < p.d; ++j) {
      const uint32_t magnitude = from[j].bits & 0x7fff;
      if (magnitude > largest) largest = magnitude;
    }
    const float scale = float_of((255 - (largest >> 7)) << 23);
    float square = 0;
    for (int64_t j = 0; j < p.d; ++j) {
      const float x = widen(from[j]) * scale;
      narrow(x, row + j);
      square += x * x;
    }
    const float factor = square == 0 ? 0 : 1 / square_root(square);
    p.inverse[i] = scale * factor;
    return factor;
  }

  static void pack(const Problem& p, int64_t tile) {
    const int64_t wide = width(p.d);
    BFloat16* const row = (BFloat16*)rows(p, tile);
    set_zero(row, TILE * wide);
    for (int64_t i = 0; i < TILE; ++i) {
      const int64_t anchor = tile * TILE + i;
      p.factors[anchor] = anchor < 2 * p.pairs ? pack_row(p, anchor, row + i * wide) : 0;
    }
    transpose(rows(p, tile), TILE, wide / 2, columns(p, tile));
    BFloat16Pair* const stack = stacked(p, tile);
    for (int64_t i = 0; i < TILE; i += 2)
      for (int64_t j = 0; j < wide; ++j)
        stack[i / 2 * wide + j] = row[i * wide + j].bits | BFloat16Pair(row[(i + 1) * wide + j].bits) << 16;
  }

  // The scores lack the factors of both rows and log2(e) / t.
  template <class Visit>
  static void products(const Problem& p, int64_t a, int64_t b, float* scores, const Visit& visit) {
    const int64_t half = width(p.d) / 2;
    product<V, ROWS, VECTORS>(TILE, TILE, half, Scalars<BFloat16Pair>{rows(p, a), half, 1}, columns(p, b), TILE, scores,
                              TILE, false, visit);
  }

  // Rounds the weights, which hold the factors of both rows. Pairs of columns make the left side of one product, pairs
  // of rows that of the other.
  static void add_gradient(const Problem& p, int64_t a, int64_t b, float* weights, float* workspace) {
    const int64_t wide = width(p.d);
    BFloat16Pair *const along_rows = (BFloat16Pair*)workspace, *const along_columns = along_rows + TILE * TILE / 2;
    for (int64_t i = 0; i < TILE; i += 2)
      round_two_rows(weights + i * TILE, along_rows + i * TILE / 2, along_columns + i / 2 * TILE);
    const auto add = [&](int64_t to, Scalars<BFloat16Pair> left, int64_t from) {
      product<V, ROWS, VECTORS>(TILE, wide, TILE / 2, left, stacked(p, from), wide, p.gradient + to * TILE * wide, wide,
                                true);
    };
    add(a, {along_rows, TILE / 2, 1}, b);
    if (a != b) add(b, {along_columns, 1, TILE}, a);
  }

  static void round_two_rows(const float* weights, BFloat16Pair* along_rows, BFloat16Pair* along_columns) {
    using Singles = Vector<uint16_t, WIDE>;
    constexpr Singles INTERLEAVE = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto round = [&](const float* first, const float* second) {
      return (__m512i)_mm512_cvtne2ps_pbh(load<__m512>(second), load<__m512>(first));
    };
    for (int64_t row = 0; row < 2; ++row)
      for (int64_t j = 0; j < TILE; j += 2 * LANES) {
        const float* const from = weights + row * TILE + j;
        store(along_rows + (row * TILE + j) / 2, round(from, from + LANES));
      }
    for (int64_t j = 0; j < TILE; j += LANES)
      store(along_columns + j, _mm512_permutexvar_epi16((__m512i)INTERLEAVE, round(weights + j, weights + TILE + j)));
  }
};

template <>
struct PanelsOf<BFloat16> {
  using type = BFloat16Panels;
};
#endif

}  // namespace
}  // namespace cmi_fast
