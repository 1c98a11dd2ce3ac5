// A tile of nt_xent_loss: which of its pairs are negatives of each other.
#pragma once

#include "cpu/kernels/nt_xent_panels.h"

namespace cmi_fast {
namespace {

// What a tile's rows and columns are, and which of its pairs are no negatives of each other.
template <class T>
struct NtXentTile {
  using C = Compute<T>;
  using V = Vector<C, WIDE>;
  using Problem = NtXentLoss<T>;
  static constexpr int LANES = VectorOf<C, WIDE>::LANES;
  int64_t row, column;  // their first rows among all

  bool diagonal() const { return row == column; }

  // No anchor of the tile has a negative in it: both sides lie in one view, or no side has anchors.
  bool empty(const Problem& p) const {
    const int64_t row_end = row + TILE, column_end = column + TILE;
    if (!p.both && row >= p.pairs && column >= p.pairs) return true;
    return p.cross_view && ((row_end <= p.pairs && column_end <= p.pairs) || (row >= p.pairs && column >= p.pairs));
  }

  // All pairs of the tile are negatives: it lies off the diagonal, holds no positives (those of its rows in `second`
  // are left of the diagonal), no padding and, where that matters, no two rows of one view.
  bool full(const Problem& p) const {
    const auto meets = [&](int64_t begin) { return begin < column + TILE && column < begin + TILE; };
    if (diagonal() || meets(row + p.pairs) || column + TILE > 2 * p.pairs) return false;
    return !p.cross_view || (row + TILE <= p.pairs && column >= p.pairs);
  }

  // Writes `value` over the pairs of row i, from column j on, that are no negatives: with itself, its positive,
  // padding.
  template <int COUNT>
  void mask(const Problem& p, int64_t i, int64_t j, C value, V (&x)[COUNT]) const {
    using Index = typename Float<C>::Bits;  // as wide as the numbers, and no processor's memory holds as many rows
    const int64_t n = 2 * p.pairs, anchor = row + i;
    const bool first_only = p.cross_view && anchor >= p.pairs, second_only = p.cross_view && anchor < p.pairs;
    const Index begin = second_only ? p.pairs : 0, end = anchor >= n ? 0 : first_only ? p.pairs : n;
    const Index self = anchor, positive = p.partner(anchor);
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) {
      Vector<Index, WIDE> k{};
      for (int lane = 0; lane < LANES; ++lane) k[lane] = column + j + v * LANES + lane;
      x[v] = ((k >= begin) & (k < end) & (k != self) & (k != positive)) ? x[v] : V{} + value;
    }
  }
};

}  // namespace
}  // namespace cmi_fast
