// 2^x where the result is a normal number: nothing has to be caught, so it takes fewer steps than exp2_nonpositive.
#pragma once

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

// A polynomial for 2^r on |r| <= 1/2.
template <class T>
struct ReducedExp2 {
  static constexpr int DEGREE = Float<T>::EXP_DEGREE;
  static constexpr T coefficient(int i) { return EXP2<T>.coefficient[i]; }
};

// The minimax polynomial of relative error: 7.5e-8, as much as the last rounding of a float. (Taylor's has 2.2e-6.)
template <>
struct ReducedExp2<float> {
  static constexpr int DEGREE = 5;
  static constexpr float coefficient(int i) {
    constexpr float of[] = {1.00000007f, 0.693146967f, 0.240221197f, 0.0555071327f, 0.00967554133f, 0.00132764722f};
    return of[i];
  }
};

// 2^x for EXP_MIN <= x <= -EXP_MIN: 2^n 2^r with n = round(x). NaN stays NaN. Of COUNT vectors in step, so that while
// one waits for its last result the others go on.
template <class T, int BYTES, int COUNT>
inline void exp2_bounded(Vector<T, BYTES> (&x)[COUNT]) {
  using F = Float<T>;
  using V = Vector<T, BYTES>;
  using Bits = Vector<typename F::Bits, BYTES>;
  using Polynomial = ReducedExp2<T>;
  V shifted[COUNT], r[COUNT];
  const auto each = [](auto step) {
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) step(v);
  };
  each([&](int v) { shifted[v] = x[v] + F::ROUND; });
  each([&](int v) { r[v] = x[v] - (shifted[v] - F::ROUND); });
  each([&](int v) {
    x[v] = r[v] * Polynomial::coefficient(Polynomial::DEGREE) + Polynomial::coefficient(Polynomial::DEGREE - 1);
  });
#pragma GCC unroll 16
  for (int i = Polynomial::DEGREE - 2; i >= 0; --i)
    each([&](int v) { x[v] = x[v] * r[v] + Polynomial::coefficient(i); });
  // The low bits of `shifted` hold n; in the exponent's place, added to 1's, they make 2^n.
  each([&](int v) { x[v] *= (V)(((Bits)shifted[v] << F::MANTISSA) + (Bits)(V{} + T(1))); });
}

}  // namespace
}  // namespace cmi_fast
