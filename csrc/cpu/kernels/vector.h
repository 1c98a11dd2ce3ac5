// Vectors of the ISA level this file is compiled for, and the few functions on them that kernels need.
// Torch-free and without standard-library templates: whatever is compiled here for AVX-512 must never become the
// linker's copy for everybody. Everything has internal linkage for the same reason.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(CMI_FAST_LEVEL)
#error "compile kernels once per ISA level with -DCMI_FAST_LEVEL=<level>"
#endif

namespace cmi_fast {
namespace {

// Widest vector of the level in bytes, and how many of them the registers hold.
#if defined(__AVX512F__)
constexpr int WIDE = 64;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int WIDE = 32;
constexpr int REGISTERS = 16;
#else
constexpr int WIDE = 16;
constexpr int REGISTERS = 16;
#endif

template <class T, int BYTES>
struct VectorOf {
  typedef T type __attribute__((vector_size(BYTES)));
  static constexpr int LANES = BYTES / sizeof(T);
};

template <class T, int BYTES>
using Vector = typename VectorOf<T, BYTES>::type;

template <class V, class T>
inline V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
inline void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// Past the caches, to an address that is a multiple of WIDE: for results too large for them, whose old contents would
// otherwise be fetched first. finish_streaming makes them visible to other threads.
template <class T>
inline void store_streaming(T* to, Vector<T, WIDE> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)to, (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i*)to, (__m128i)v);
#else
  store(to, v);
#endif
}

inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
inline void set_zero(T* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(T));
}

template <class T>
inline void copy(const T* from, int64_t count, T* to) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

template <class T>
inline void add(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <class T>
struct Float;

template <>
struct Float<float> {
  using Bits = uint32_t;
  static constexpr int MANTISSA = 23;
  static constexpr int EXP_DEGREE = 7;         // Taylor remainder 5e-9 on |r| <= 1/2
  static constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float EXP_MIN = -126.0f;    // below it 2^x is denormal
  static constexpr float LOWEST = -__FLT_MAX__;
};

template <>
struct Float<double> {
  using Bits = uint64_t;
  static constexpr int MANTISSA = 52;
  static constexpr int EXP_DEGREE = 13;                // Taylor remainder 4e-18
  static constexpr double ROUND = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double EXP_MIN = -1022.0;
  static constexpr double LOWEST = -__DBL_MAX__;
};

constexpr double LOG2_E = 1.44269504088896340736, LN_2 = 0.693147180559945309417;

// Taylor coefficients of 2^r: ln(2)^i / i!
constexpr double exp2_coefficient(int i) { return i == 0 ? 1.0 : exp2_coefficient(i - 1) * LN_2 / i; }

template <class T>
struct Exp2 {
  T coefficient[Float<T>::EXP_DEGREE + 1];
  constexpr Exp2() : coefficient{} {
    for (int i = 0; i <= Float<T>::EXP_DEGREE; ++i) coefficient[i] = T(exp2_coefficient(i));
  }
};

template <class T>
constexpr Exp2<T> EXP2{};

// y 2^n where x is at least EXP_MIN, else 0; shifted = n + ROUND. NaN stays NaN.
template <class T, int BYTES>
inline Vector<T, BYTES> scale_exponent(Vector<T, BYTES> y, Vector<T, BYTES> shifted, Vector<T, BYTES> x) {
  using F = Float<T>;
  using V = Vector<T, BYTES>;
  using Bits = Vector<typename F::Bits, BYTES>;
#if defined(__AVX512F__)
  const V n = shifted - F::ROUND, least = V{} + F::EXP_MIN;
  if constexpr (BYTES == 64 && sizeof(T) == 4)
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), y, n);
  else if constexpr (BYTES == 64)
    return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, least, _CMP_NLT_UQ), y, n);
#endif
  // The low bits of `shifted` hold n; moved to the exponent's place they multiply by 2^n.
  const V scaled = (V)((Bits)y + ((Bits)shifted << F::MANTISSA));
  y = y == y ? scaled : y;  // a NaN's own low bits would pass for an exponent
  return x < F::EXP_MIN ? V{} : y;
}

// 2^x for x up to 0 and a little above (what a softmax needs): 2^n 2^r with n = round(x). Exactly 0 below EXP_MIN; NaN
// stays NaN. Of COUNT vectors in step, so that while one waits for its last result the others go on.
template <class T, int BYTES, int COUNT>
inline void exp2_nonpositive(Vector<T, BYTES> (&x)[COUNT]) {
  using F = Float<T>;
  using V = Vector<T, BYTES>;
  V shifted[COUNT], r[COUNT], y[COUNT];
  const auto each = [](auto step) {
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) step(v);
  };
  each([&](int v) { shifted[v] = x[v] + F::ROUND; });
  each([&](int v) { r[v] = x[v] - (shifted[v] - F::ROUND); });
  // Horner's rule in r^2 on pairs of terms: half as many results to wait for.
  const auto pair = [&](int i, int v) { return r[v] * EXP2<T>.coefficient[i] + EXP2<T>.coefficient[i - 1]; };
  each([&](int v) { y[v] = pair(F::EXP_DEGREE, v); });
#pragma GCC unroll 16
  for (int i = F::EXP_DEGREE - 2; i > 0; i -= 2) each([&](int v) { y[v] = y[v] * (r[v] * r[v]) + pair(i, v); });
  each([&](int v) { x[v] = scale_exponent<T, BYTES>(y[v], shifted[v], x[v]); });
}

template <class T, int BYTES>
inline Vector<T, BYTES> exp2_nonpositive(Vector<T, BYTES> x) {
  Vector<T, BYTES> y[1] = {x};
  exp2_nonpositive<T, BYTES>(y);
  return y[0];
}

#if defined(__clang__)
#define CMI_FAST_SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define CMI_FAST_SHUFFLE(v, ...) __builtin_shuffle(v, Vector<typename Float<T>::Bits, BYTES>{__VA_ARGS__})
#endif

// Reduction by butterfly: every lane ends with the result, the same bits in each. Indices are spelt out because only
// constants become single shuffle instructions.
template <class T, int BYTES, class Combine>
inline Vector<T, BYTES> reduce_lanes(Vector<T, BYTES> v, Combine combine) {
  constexpr int LANES = VectorOf<T, BYTES>::LANES;
  static_assert(LANES == 2 || LANES == 4 || LANES == 8 || LANES == 16);
  if constexpr (LANES == 16) {
    v = combine(v, CMI_FAST_SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = combine(v, CMI_FAST_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = combine(v, CMI_FAST_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = combine(v, CMI_FAST_SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  } else if constexpr (LANES == 8) {
    v = combine(v, CMI_FAST_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = combine(v, CMI_FAST_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5));
    v = combine(v, CMI_FAST_SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6));
  } else if constexpr (LANES == 4) {
    v = combine(v, CMI_FAST_SHUFFLE(v, 2, 3, 0, 1));
    v = combine(v, CMI_FAST_SHUFFLE(v, 1, 0, 3, 2));
  } else {
    v = combine(v, CMI_FAST_SHUFFLE(v, 1, 0));
  }
  return v;
}

template <int... LANE>
struct Lanes {};
template <int COUNT>
struct LanesUpTo;
template <>
struct LanesUpTo<2> : Lanes<0, 1> {};
template <>
struct LanesUpTo<4> : Lanes<0, 1, 2, 3> {};
template <>
struct LanesUpTo<8> : Lanes<0, 1, 2, 3, 4, 5, 6, 7> {};

#if defined(__clang__)
#define CMI_FAST_SHUFFLE_TWO(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CMI_FAST_SHUFFLE_TWO(a, b, ...) __builtin_shuffle(a, b, Vector<typename Float<T>::Bits, BYTES>{__VA_ARGS__})
#endif

// One step of a transposition: lanes with bit STEP of a change places with lanes without it of b.
template <class T, int BYTES, int STEP, int... LANE>
inline void exchange_lanes(Vector<T, BYTES>& a, Vector<T, BYTES>& b, Lanes<LANE...>) {
  constexpr int LANES = sizeof...(LANE);
  const Vector<T, BYTES> first = CMI_FAST_SHUFFLE_TWO(a, b, (LANE & STEP ? LANES + LANE - STEP : LANE)...);
  b = CMI_FAST_SHUFFLE_TWO(a, b, (LANE & STEP ? LANES + LANE : LANE + STEP)...);
  a = first;
}

// The square matrix whose rows are `rows`, transposed.
template <class T, int BYTES, int STEP = 1>
inline void transpose(Vector<T, BYTES>* rows) {
  constexpr int LANES = VectorOf<T, BYTES>::LANES;
#pragma GCC unroll 8
  for (int row = 0; row < LANES; ++row)
    if (!(row & STEP)) exchange_lanes<T, BYTES, STEP>(rows[row], rows[row + STEP], LanesUpTo<LANES>());
  if constexpr (2 * STEP < LANES) transpose<T, BYTES, 2 * STEP>(rows);
}

template <class T, int BYTES>
inline Vector<T, BYTES> sum_lanes(Vector<T, BYTES> v) {
  return reduce_lanes<T, BYTES>(v, [](auto a, auto b) { return a + b; });
}

// What a comparison of vectors of four-byte numbers came to, a bit for each lane.
inline uint32_t lanes_set(Vector<int32_t, WIDE> compared) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)compared);
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)compared);
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)compared);
#else
  uint32_t lanes = 0;
  for (int lane = 0; lane < VectorOf<int32_t, WIDE>::LANES; ++lane) lanes |= uint32_t(compared[lane] & 1) << lane;
  return lanes;
#endif
}

template <class V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}

}  // namespace
}  // namespace cmi_fast
