// The best of a user's interests, where tensor cores leave the scores: rows are candidates, columns interests.
//
// A user has one, two, four or eight groups of eight columns. Of a row's eight groups each of the four lanes that share
// it deals with two, its own number and that plus four: what they cost does not depend on the number of interests.
#pragma once

#include "cuda/kernels/tile.h"

namespace cmi_fast::cuda {

constexpr int GROUPS = TILE / 8;

CMI_FAST_HOST_DEVICE int own_group(int slot, Place place) { return slot * 4 + place.lane() % 4; }

struct Best {
  float score;
  float column;  // among the user's
};

CMI_FAST_DEVICE Best shuffle_xor(Best x, int mask) { return {shuffle_xor(x.score, mask), shuffle_xor(x.column, mask)}; }

CMI_FAST_DEVICE float better(float a, float b) { return max_or_nan(a, b); }

// The first of equal ones; NaN where one is, so that it is not lost.
CMI_FAST_DEVICE Best better(Best a, Best b) {
  const bool second = b.score > a.score || b.score != b.score || (b.score == a.score && b.column < a.column);
  return second ? b : a;
}

// The best over four lanes of x[t], for lane t of them.
template <class X>
CMI_FAST_DEVICE X reduce_to_lanes(const X* x, Place place) {
  const bool odd = place.lane() & 1, high = place.lane() & 2;
  const X low_pair = better(odd ? x[1] : x[0], shuffle_xor(odd ? x[0] : x[1], 1));
  const X high_pair = better(odd ? x[3] : x[2], shuffle_xor(odd ? x[2] : x[3], 1));
  return better(high ? high_pair : low_pair, shuffle_xor(high ? low_pair : high_pair, 2));
}

// all[t] becomes the x of lane t of four.
template <class X>
CMI_FAST_DEVICE void gather_from_lanes(X x, X (&all)[4], Place place) {
  const bool odd = place.lane() & 1, high = place.lane() & 2;
  const X neighbour = shuffle_xor(x, 1);
  const X first = odd ? neighbour : x, second = odd ? x : neighbour;
  const X other_first = shuffle_xor(first, 2), other_second = shuffle_xor(second, 2);
  all[0] = high ? other_first : first;
  all[1] = high ? other_second : second;
  all[2] = high ? first : other_first;
  all[3] = high ? second : other_second;
}

// The best among at(group, 0) and at(group, 1), over four lanes, of the users that this lane's two groups belong to.
template <class X, class At>
CMI_FAST_DEVICE void best_interests(X (&best)[2], int groups_a_user, Place place, const At& at) {
  X of_groups[GROUPS];
  CMI_FAST_UNROLL
  for (int i = 0; i < GROUPS; ++i) of_groups[i] = better(at(i, 0), at(i, 1));
  CMI_FAST_UNROLL
  for (int step = 1; step < GROUPS; step *= 2) {
    if (groups_a_user <= step) continue;
    CMI_FAST_UNROLL
    for (int i = 0; i < GROUPS; ++i) {
      if (i & step) continue;
      of_groups[i] = of_groups[i + step] = better(of_groups[i], of_groups[i + step]);
    }
  }
  CMI_FAST_UNROLL
  for (int slot = 0; slot < 2; ++slot) best[slot] = reduce_to_lanes(of_groups + slot * 4, place);
}

}  // namespace cmi_fast::cuda
