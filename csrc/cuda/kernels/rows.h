// What all operators do with single rows: a warp a row.
#pragma once

#include <cmath>

#include "cuda/machine.h"

namespace cmi_fast::cuda {

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Four neighbours in memory: read and written at once.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

CMI_FAST_DEVICE float sum_over_warp(float x) {
  for (int mask = 1; mask < LANES; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}

CMI_FAST_DEVICE float max_over_warp(float x) {
  for (int mask = 1; mask < LANES; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

CMI_FAST_DEVICE float softplus(float x) { return fmaxf(x, 0) + log1pf(expf(-fabsf(x))); }

// A power of two that brings `magnitude` to [1, 2), or as near as the range of exponents goes.
CMI_FAST_DEVICE float inverse_power_of_two(float magnitude) {
  const int exponent = 254 - int(bits_of(magnitude) >> 23 & 0xff);
  return float_of(uint32_t(exponent < 1 ? 1 : exponent) << 23);
}

// The grid of one warp a row, and the row that a warp takes in it.
inline Grid warps(int64_t rows) { return {int((rows + WARPS - 1) / WARPS)}; }
CMI_FAST_DEVICE int row_of(Place place) { return place.block_x * WARPS + place.warp(); }

// A kernel without shared memory; an array has a size, though.
struct RowKernel {
  static constexpr int SHARED = 16;
};

// One warp: the power of two that brings the largest of `count` numbers near 2048: weights of
// float16's second product, and its inverse.
struct HalfRange : RowKernel {
  const float* weights;
  int count;
  float* scale_and_unscale;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    float largest = 0;
    for (int i = place.lane(); i < count; i += LANES) largest = fmaxf(largest, fabsf(weights[i]));
    largest = fmaxf(max_over_warp(largest), 0x1p-100f);
    const float scale = inverse_power_of_two(largest) * 1024;
    if (place.lane() > 0) return;
    scale_and_unscale[0] = scale;
    scale_and_unscale[1] = 1 / scale;
  }
};

// x * scale is near one, x * scale * inverse of unit length, or zero for zero.
struct Scale {
  float scale, inverse;
};

template <class T>
CMI_FAST_DEVICE Scale row_scale(const T* row, int d, int lane) {
  float largest = 0, square = 0;
  for (int k = lane; k < d; k += LANES) largest = fmaxf(largest, fabsf(widen(row[k])));
  const float scale = inverse_power_of_two(max_over_warp(largest));
  for (int k = lane; k < d; k += LANES) square += widen(row[k]) * scale * (widen(row[k]) * scale);
  square = sum_over_warp(square);
  return {scale, square == 0 ? 0 : 1 / sqrtf(square)};
}

// Back through the normalisation of rows [count, d].
template <class T>
struct UnitRowsBackward : RowKernel {
  const T* rows;
  const float* unit_grad;
  int count, d;
  bool normalize;
  T* rows_grad;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int row = row_of(place), lane = place.lane();
    if (row >= count) return;
    const T* const x = rows + int64_t(row) * d;
    const float* const grad = unit_grad + int64_t(row) * d;
    const Scale scale = normalize ? row_scale(x, d, lane) : Scale{1, 1};
    const auto unit = [&](int k) { return widen(x[k]) * scale.scale * scale.inverse; };
    float radial = 0;
    for (int k = lane; k < d; k += LANES) radial += unit(k) * grad[k];
    radial = sum_over_warp(radial);
    for (int k = lane; k < d; k += LANES) {
      const float tangent = (grad[k] - unit(k) * radial) * scale.inverse * scale.scale;
      narrow(normalize ? tangent : grad[k], rows_grad + int64_t(row) * d + k);
    }
  }
};

// Column sums of parts [parts, columns], in one order: a block takes eight columns, sixteen threads each.
struct SumOfParts {
  static constexpr int COLUMNS = 8, GROUPS = THREADS / COLUMNS;
  static constexpr int SHARED = THREADS * int(sizeof(float));
  const float* parts;
  int count;
  int64_t columns;
  float* sums;

  static Grid grid(int64_t columns) { return {int((columns + COLUMNS - 1) / COLUMNS)}; }

  CMI_FAST_DEVICE void operator()(Place place, char* shared) const {
    const int64_t column = place.block_x * int64_t(COLUMNS) + place.thread % COLUMNS;
    float* const of_groups = reinterpret_cast<float*>(shared);  // [GROUPS, COLUMNS]
    float sum = 0;
    if (column < columns) {
      for (int part = place.thread / COLUMNS; part < count; part += GROUPS) sum += parts[part * columns + column];
    }
    of_groups[place.thread] = sum;
    sync_threads();
    if (place.thread >= COLUMNS || column >= columns) return;
    sum = 0;
    for (int group = 0; group < GROUPS; ++group) sum += of_groups[group * COLUMNS + place.thread];
    sums[column] = sum;
  }
};

}  // namespace cmi_fast::cuda
