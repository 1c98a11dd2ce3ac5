// The gradient of a table as a sequence of kernels. launch(grid, kernel) runs one: on a GPU, or in the tests' emulator.
#pragma once

#include "cuda/kernels/table_gradient.h"

namespace cmi_fast::cuda {

// The gradient of a table, zeros before, of the positions' in the order of their rows.
template <class S>
struct TableGradient {
  OrderedPositions order;
  const float* gathered;  // [positions, d]
  int d;
  float* edges;  // [edges_size(positions, d)], to work in
  S* table;

  static int64_t edges_size(int64_t positions, int64_t d) {
    return 2 * d * ((positions + OrderedPositions::WINDOW - 1) / OrderedPositions::WINDOW);
  }

  template <class Launch>
  void run(const Launch& launch) const {
    const Grid grid{warps(order.windows()).x, (d + LANES - 1) / LANES};
    launch(grid, SumWithinWindows<S>{{}, order, gathered, d, edges, table});
    launch(grid, SumAcrossWindows<S>{{}, order, edges, d, table});
  }
};

}  // namespace cmi_fast::cuda
