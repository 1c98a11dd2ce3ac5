// Products with a matrix that has one entry for each pair of user and candidate, in the row of the user's best query.
#pragma once

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

// A strip of users and one candidate: where the users' best queries lie, what their pairs weigh.
template <class T>
struct Column {
  int64_t users, m, wide, stride;
  const T* weights;     // [users], `stride` apart
  const uint8_t* best;  // [users], `stride` apart

  __attribute__((always_inline)) int64_t query(int64_t u) const { return (u * m + best[u * stride]) * wide; }
};

// dq of each user's best query += weight * candidate, COUNT vectors of each. The users come one after the other: two
// sums into one row are far enough apart for the second to find the first in memory.
template <class V, int COUNT, class T>
inline void add_candidate(const Column<T>& column, const T* candidate, T* dq) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  V from[COUNT];
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) from[v] = load<V>(candidate + v * LANES);
  for (int64_t u = 0; u < column.users; ++u) {
    const T weight = column.weights[u * column.stride];
    T* const to = dq + column.query(u);
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) store(to + v * LANES, load<V>(to + v * LANES) + weight * from[v]);
  }
}

// dv of the candidate += weight * each user's best query, COUNT vectors of each.
template <class V, int COUNT, class T>
inline void add_queries(const Column<T>& column, const T* queries, T* dv) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  V sum[COUNT];
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) sum[v] = load<V>(dv + v * LANES);
  for (int64_t u = 0; u < column.users; ++u) {
    const T weight = column.weights[u * column.stride];
    const T* const query = queries + column.query(u);
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sum[v] += weight * load<V>(query + v * LANES);
  }
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) store(dv + v * LANES, sum[v]);
}

}  // namespace
}  // namespace cmi_fast
