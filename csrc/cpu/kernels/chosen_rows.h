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

// Which of the 64 bytes are `value`, a bit each.
inline uint64_t equal_bytes(const uint8_t* bytes, uint8_t value) {
#if defined(__AVX512BW__)
  return _mm512_cmpeq_epi8_mask(load<__m512i>(bytes), _mm512_set1_epi8(char(value)));
#elif defined(__x86_64__)
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += 16) {
    const __m128i equal = _mm_cmpeq_epi8(load<__m128i>(bytes + i), _mm_set1_epi8(char(value)));
    bits |= uint64_t(_mm_movemask_epi8(equal)) << i;
  }
  return bits;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t(bytes[i] == value) << i;
  return bits;
#endif
}

// to += scale * the sum of weights[c] * row c of `rows` over the bits c of `chosen`, COUNT vectors of each.
template <class V, int COUNT, class T>
inline void add_rows(uint64_t chosen, const T* weights, const T* rows, int64_t wide, T scale, T* to) {
  constexpr int LANES = sizeof(V) / sizeof(T);
  V sum[COUNT]{};
  for (; chosen; chosen &= chosen - 1) {
    const int64_t c = __builtin_ctzll(chosen);
    const T weight = weights[c];
    const T* const row = rows + c * wide;
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sum[v] += weight * load<V>(row + v * LANES);
  }
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) store(to + v * LANES, load<V>(to + v * LANES) + scale * sum[v]);
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
