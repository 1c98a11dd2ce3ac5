// How interest_softmax_loss lays out its buffers and cuts its work.
#pragma once

#include "cpu/kernels/interest_softmax_loss.h"
#include "cpu/kernels/product.h"
#include "cpu/kernels/rows.h"

namespace cmi_fast {
namespace {

constexpr int64_t TILE = CANDIDATE_TILE;
constexpr int ROWS = 4;
constexpr int VECTORS = REGISTERS == 32 ? 4 : 2;
constexpr int64_t FEW_INTERESTS = 16;  // so few that several of a tile's candidates have the same best one
constexpr int64_t STRIP_ROWS = 64;     // queries at a time: with their scores and a tile of candidates they fit in L1

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct InterestSoftmaxLayout {
  using V = Vector<T, WIDE>;
  using Bits = Vector<typename Float<T>::Bits, WIDE>;
  using Problem = InterestSoftmaxLoss<T>;
  using Outputs = InterestSoftmaxLossOutputs<T>;
  using Gradients = InterestSoftmaxLossGradients<T>;
  static constexpr int LANES = VectorOf<T, WIDE>::LANES;
  using Bytes = Vector<uint8_t, LANES>;
  static constexpr T LOWEST = Float<T>::LOWEST, INFINITE = T(__builtin_inf());

  static int64_t padded(int64_t d) { return round_up(d, LANES); }
  static int64_t tiles_of(int64_t count) { return round_up(count, TILE) / TILE; }
  static T* query(const Problem& p, int64_t user) { return p.queries + user * p.m * padded(p.d); }
  static int64_t pair(const Problem& p, int64_t tile, int64_t user) { return (tile * p.users + user) * TILE; }

  // As many users as STRIP_ROWS hold, and at least so many that their queries fill the product's tiles.
  static int64_t strip(int64_t m) {
    int64_t users = 1;
    while (users * m % ROWS) ++users;
    while (2 * users * m <= STRIP_ROWS) users *= 2;
    return users;
  }

  // Users whose weights the backward holds at a time. Some, that a candidate's gradient stays in registers meanwhile.
  static int64_t weighed(int64_t m) { return greater(strip(m), 8); }

  static typename InterestSoftmaxLossKernel<T>::Sizes sizes(int64_t users, int64_t m, int64_t count, int64_t d) {
    const int64_t tiles = tiles_of(count), wide = padded(d), rows = strip(m) * m;
    const int64_t scores = rows * TILE, dq = (rows + 2) * wide, dv = TILE * (1 + wide);
    const int64_t backward = weighed(m) * TILE + greater(dq, dv);
    return {tiles,
            strip(m),
            round_up(users * m, ROWS) * wide,
            tiles * d * TILE,
            tiles * TILE * wide,
            round_up(greater(scores, backward), 16)};
  }
};

}  // namespace
}  // namespace cmi_fast
