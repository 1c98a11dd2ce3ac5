// The gradient of a table: the sum of those of the positions that read a row. Positions are put in the order of their
// rows, stable, and each row's run of them is added up in that order. Windows of 32 positions, a warp each, share out
// long runs: what a run has in one window is summed there, and a run that crosses windows takes these sums in order.
#pragma once

#include "cuda/kernels/rows.h"

namespace cmi_fast::cuda {

constexpr int NO_ROW = 0x7fffffff;  // comes last

// Positions in the order of the rows that they read.
struct OrderedPositions {
  static constexpr int WINDOW = 32;
  const int* rows;           // [count]; NO_ROW for positions without a gradient
  const int64_t* positions;  // [count]
  int count;

  CMI_FAST_HOST_DEVICE int windows() const { return count / WINDOW + (count % WINDOW > 0); }
  CMI_FAST_HOST_DEVICE int begin(int window) const { return window * WINDOW; }
  CMI_FAST_HOST_DEVICE int end(int window) const {
    return count - begin(window) < WINDOW ? count : begin(window) + WINDOW;
  }
  // Whether the run that a window begins or ends with goes on there.
  CMI_FAST_HOST_DEVICE bool goes_on_before(int window) const {
    return window > 0 && rows[begin(window) - 1] == rows[begin(window)];
  }
  CMI_FAST_HOST_DEVICE bool goes_on_after(int window) const {
    return end(window) < count && rows[end(window)] == rows[end(window) - 1];
  }
};

// Runs within a window give the table's gradient, the others edges [2, windows, d]: what a run from before has in a
// window, and what one that goes on has in its first window. Grid: warps, chunks of LANES dimensions.
template <class S>
struct SumWithinWindows : RowKernel {
  OrderedPositions order;
  const float* gathered;  // [positions, d]
  int d;
  float* edges;
  S* table;  // [rows, d]

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    constexpr int AT_ONCE = 8;  // loads in flight
    const int window = row_of(place), k = place.block_y * LANES + place.lane();
    if (window >= order.windows() || k >= d) return;
    const int begin = order.begin(window), end = order.end(window);
    bool before = order.goes_on_before(window);
    const bool after = order.goes_on_after(window);
    float sum = 0;
    for (int first = begin; first < end && order.rows[first] != NO_ROW; first += AT_ONCE) {
      float x[AT_ONCE];
      CMI_FAST_UNROLL
      for (int i = 0; i < AT_ONCE; ++i) {
        const bool read = first + i < end && order.rows[first + i] != NO_ROW;
        x[i] = read ? gathered[order.positions[first + i] * d + k] : 0;
      }
      CMI_FAST_UNROLL
      for (int i = 0; i < AT_ONCE; ++i) {
        const int place_in_order = first + i;
        if (place_in_order >= end) break;
        sum += x[i];
        const bool last = place_in_order + 1 == end;
        const int row = order.rows[place_in_order];
        if (!last && order.rows[place_in_order + 1] == row) continue;
        if (before)
          edges[int64_t(window) * d + k] = sum;
        else if (last && after)
          edges[(int64_t(order.windows()) + window) * d + k] = sum;
        else if (row != NO_ROW)
          narrow(sum, table + int64_t(row) * d + k);
        before = false;
        sum = 0;
      }
    }
  }
};

// The runs that cross windows, each by the warp of its first window.
template <class S>
struct SumAcrossWindows : RowKernel {
  OrderedPositions order;
  const float* edges;
  int d;
  S* table;

  CMI_FAST_DEVICE void operator()(Place place, char*) const {
    const int first = row_of(place), k = place.block_y * LANES + place.lane();
    if (first >= order.windows() || k >= d || !order.goes_on_after(first)) return;
    const int row = order.rows[order.end(first) - 1];
    if (row == NO_ROW || (order.goes_on_before(first) && order.rows[order.begin(first)] == row)) return;
    float sum = edges[(int64_t(order.windows()) + first) * d + k];
    for (int window = first + 1; window < order.windows() && order.rows[order.begin(window)] == row; ++window)
      sum += edges[int64_t(window) * d + k];
    narrow(sum, table + int64_t(row) * d + k);
  }
};

}  // namespace cmi_fast::cuda
