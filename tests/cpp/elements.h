// The types that operators take, in plain arithmetic: no conversion of the kernels is used to test them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "cpu/kernels/element.h"
#include "cpu/kernels/half.h"

namespace cmi_fast::testing {

template <class T>
struct ElementOf {
  std::string name;
  double epsilon;  // from 1 to the next number
  T nan;
};

template <class T>
const ElementOf<T> ELEMENT;
template <>
inline const ElementOf<float> ELEMENT<float>{"float32", 0x1p-23, std::numeric_limits<float>::quiet_NaN()};
template <>
inline const ElementOf<double> ELEMENT<double>{"float64", 0x1p-52, std::numeric_limits<double>::quiet_NaN()};
template <>
inline const ElementOf<BFloat16> ELEMENT<BFloat16>{"bfloat16", 0x1p-7, {0x7fc0}};
template <>
inline const ElementOf<Half> ELEMENT<Half>{"float16", 0x1p-10, {0x7e00}};

// What a tensor of S is to a kernel that computes in Compute<S>.
template <class S>
constexpr Element STORED = std::is_same_v<S, BFloat16> ? Element::bfloat16
                           : std::is_same_v<S, Half>   ? Element::float16
                                                       : Element::computed;

inline double to_double(double x) { return x; }

// Bits: sign, exponent, mantissa.
inline double to_double(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int top = (1 << exponent_bits) - 1, bias = top / 2, exponent = int(bits >> mantissa_bits) & top;
  const double fraction = std::ldexp(double(bits & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  if (exponent == top) return fraction > 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent > 0 ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias));
}

inline double to_double(BFloat16 x) { return to_double(x.bits, 8, 7); }
inline double to_double(Half x) { return to_double(x.bits, 5, 10); }

// Some number near x, which is 0 or neither tiny nor huge; of the half types the next one towards zero.
template <class T>
T from_double(double x) {
  if constexpr (sizeof(T) > 2) {
    return T(x);
  } else {
    constexpr int mantissa_bits = std::is_same_v<T, Half> ? 10 : 7, bias = std::is_same_v<T, Half> ? 15 : 127;
    int exponent;
    const double mantissa = std::frexp(std::abs(x), &exponent);  // in [1/2, 1)
    const int magnitude = ((exponent - 2 + bias) << mantissa_bits) + int(std::ldexp(mantissa, mantissa_bits + 1));
    return {uint16_t((x < 0 ? 0x8000 : 0) | (x != 0 && exponent + bias > 1 ? magnitude : 0))};
  }
}

}  // namespace cmi_fast::testing
