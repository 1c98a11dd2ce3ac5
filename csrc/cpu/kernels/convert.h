// Values from the type they have in memory to the type they are computed in (widen), and back (narrow: to the nearest,
// ties to even; NaN stays NaN and inf inf). For float and double both copy, so that a kernel is written once.
#pragma once

#include "cpu/kernels/half.h"
#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// A bfloat16 is the upper half of a float.
inline float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

inline void narrow(float x, BFloat16* to) {
  const uint32_t bits = bits_of(x), odd = bits >> 16 & 1;
  const uint32_t rounded = (bits + 0x7fff + odd) >> 16, quiet_nan = bits >> 16 | 0x40;
  to->bits = uint16_t(x == x ? rounded : quiet_nan);
}

// A float16 has 10 bits of mantissa, float 23; its exponents are biased by 15, float's by 127.
constexpr int HALF_MANTISSA_SHIFT = 23 - 10;
constexpr uint32_t HALF_REBIAS = uint32_t(127 - 15) << 23;
constexpr uint32_t HALF_SMALLEST_NORMAL = uint32_t(127 - 14) << 23;  // 2^-14 as float

inline float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  const uint32_t shifted = magnitude << HALF_MANTISSA_SHIFT;
  const uint32_t normal = shifted + HALF_REBIAS, not_finite = normal + HALF_REBIAS;
  // A denormal's mantissa lacks the leading 1: given one, it is too large by just that.
  const uint32_t denormal = bits_of(float_of(shifted + HALF_SMALLEST_NORMAL) - float_of(HALF_SMALLEST_NORMAL));
  return float_of(sign | (magnitude < 0x0400 ? denormal : magnitude < 0x7c00 ? normal : not_finite));
}

inline void narrow(float x, Half* to) {
  constexpr uint32_t infinity = 0x7c00, quiet_nan = 0x7e00;
  constexpr uint32_t overflow = 0x477ff000;  // 65520, halfway between the largest float16 and 2^16
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const uint32_t odd = magnitude >> HALF_MANTISSA_SHIFT & 1;
  const uint32_t normal = (magnitude - HALF_REBIAS + 0xfff + odd) >> HALF_MANTISSA_SHIFT;
  // The last bit of 1/2 is 2^-24, float16's smallest: the sum is rounded as a denormal has to be.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t finite = magnitude < HALF_SMALLEST_NORMAL ? denormal : normal;
  to->bits = uint16_t(sign | (x != x ? quiet_nan : magnitude >= overflow ? infinity : finite));
}

inline void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}

inline void narrow(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; ++i) narrow(from[i], to + i);
}

inline void widen(const Half* from, int64_t count, float* to) {
  int64_t whole = 0;
#if defined(__F16C__)
  whole = count / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8) store(to + i, _mm256_cvtph_ps(load<__m128i>(from + i)));
#endif
  for (int64_t i = whole; i < count; ++i) to[i] = widen(from[i]);
}

inline void narrow(const float* from, int64_t count, Half* to) {
  int64_t whole = 0;
#if defined(__F16C__)
  whole = count / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    store(to + i, _mm256_cvtps_ph(load<__m256>(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (int64_t i = whole; i < count; ++i) narrow(from[i], to + i);
}

inline void widen(const float* from, int64_t count, float* to) { copy(from, count, to); }
inline void narrow(const float* from, int64_t count, float* to) { copy(from, count, to); }
inline void widen(const double* from, int64_t count, double* to) { copy(from, count, to); }
inline void narrow(const double* from, int64_t count, double* to) { copy(from, count, to); }

}  // namespace
}  // namespace cmi_fast
