// The precisions that top_k screens items in. A row x is approximated by scale * q, where q is of a type with fast
// products; what that loses goes into the bound.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

// q is x, brought near 1 by a power of two.
struct Float32 {
  using Step = float;  // what one step of a product multiplies, of so many values
  static constexpr int VALUES = 1;
  using Steps = Vector<Step, WIDE>;

  static float scale(float largest) {
    const float power = float_of(bits_of(largest) & 0x7f800000);
    return power < 0x1p-80f ? 0x1p-80f : power > 0x1p120f ? 0x1p120f : power;
  }
  static float round(float x) { return x; }
  static void pack_item(const float* q, int64_t d, Step* row) { copy(q, d, row); }
  static void pack_query(const float* q, int64_t d, Step* row) { copy(q, d, row); }
  static Step start(const Step*, int64_t) { return 0; }
  // The error of a product, its sums in any order, relative to the product of the norms.
  static double product_error(int64_t d) { return d * 0x1p-24 / (1 - d * 0x1p-24); }
  static Steps multiply_add(Step left, Steps right, Steps sum) { return sum + left * right; }
};

#if defined(__AVX512F__)
// q is a whole number from -127 to 127, and products are exact. The instruction takes one side without sign: an item's
// numbers are stored as q + 128, and a query's sums start at minus what that adds.
struct Int8 {
  using Step = int32_t;
  static constexpr int VALUES = 4;
  using Steps = Vector<Step, WIDE>;

  static float scale(float largest) { return (largest < 0x1p-80f ? 0x1p-80f : largest) / 127; }
  static float round(float x) { return x + Float<float>::ROUND - Float<float>::ROUND; }
  static void pack_item(const float* q, int64_t d, Step* row) {
    for (int64_t j = 0; j < d; ++j) ((uint8_t*)row)[j] = uint8_t(int32_t(q[j]) + 128);
  }
  static void pack_query(const float* q, int64_t d, Step* row) {
    for (int64_t j = 0; j < d; ++j) ((int8_t*)row)[j] = int8_t(int32_t(q[j]));
  }
  static Step start(const Step* query, int64_t d) {
    Step sum = 0;
    for (int64_t j = 0; j < d; ++j) sum += ((const int8_t*)query)[j];
    return -128 * sum;
  }
  static double product_error(int64_t) { return 0; }

  // In assembly because the level does not promise VNNI; whether the CPU has it is asked at run time.
  static Steps multiply_add(Step left, Steps right, Steps sum) {
    const Steps lefts = Steps{} + left;
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(right), "v"(lefts));
    return sum;
  }
};
#endif

inline float largest_magnitude(const float* x, int64_t count) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < count; ++j) {
    const float magnitude = x[j] < 0 ? -x[j] : x[j];
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// The norms of a row x and of x - scale * q.
struct Norms {
  double row, lost;

  bool finite() const { return row - row == 0; }  // and so is x
};

template <class Precision>
inline Norms approximate(const float* x, int64_t d, float scale, float* q) {
  const float inverse = 1 / scale;
  double row = 0, lost = 0;
#pragma omp simd reduction(+ : row, lost)
  for (int64_t j = 0; j < d; ++j) {
    q[j] = Precision::round(x[j] * inverse);
    const double missed = x[j] - double(scale) * q[j];
    row += double(x[j]) * x[j];
    lost += missed * missed;
  }
  return {__builtin_sqrt(row), __builtin_sqrt(lost)};
}

// Bounds are computed in float32, in a unit in which rows of finite numbers have finite bounds.
constexpr double UNIT = 0x1p-32;
constexpr double INFLATE = 1 + 0x1p-18;  // more than the roundings of a bound add up to
constexpr float SLACK = 0x1p-100f;       // more than what underflows in it

// With A = the largest of the exact or rounded products q_k . q of a user's interests with an item, the score is at
// most
//   s (A t + row |v| + lost |v - t q|)        s the user's scale, t the item's
// and an item can only be listed where the bracket, in UNITs, is at least `least`.
struct UserBound {
  float row, lost, least, slack;
  double inverse_scale;

  // From the largest norms of the user's interests u_k and of u_k - s q_k.
  UserBound(Norms largest, float scale, double product_error) {
    inverse_scale = 1 / double(scale);
    const double approximation = (largest.row + largest.lost) * inverse_scale;  // at least |q_k|
    lost = float(approximation * (1 + product_error) * INFLATE);
    row = float((largest.lost * inverse_scale + approximation * (product_error + 0x1p-18)) * INFLATE);
    slack = approximation == 0 ? 0 : SLACK;
  }

  // From now on items need at least this score.
  void raise(double score) {
    const double scaled = score * inverse_scale * UNIT, magnitude = scaled < 0 ? -scaled : scaled;
    least = float(scaled - magnitude * 0x1p-18 - slack);
  }

  bool zero() const { return lost == 0; }
};

}  // namespace
}  // namespace cmi_fast
