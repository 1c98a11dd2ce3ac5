// Both poolings as sequences of kernels. launch(grid, kernel) runs one: on a GPU, or in the tests' emulator.
#pragma once

#include "cuda/kernels/soft_assignment_pool_backward.h"

namespace cmi_fast::cuda {

template <class S, class C>
struct PoolPasses {
  PoolInputs<S, C> x;   // `categories` and `aligned` are set here
  const C* categories;  // [m, d]
  float* units;         // [units_size()], which the passes write first

  int64_t units_size() const { return int64_t(x.m) * x.chunks() * DEPTH; }
  PoolSchedule schedule() const { return PoolSchedule::of(x.batch, x.positions); }
  // Numbers of a backward pass's partial sums.
  int64_t category_parts() const { return schedule().backward_blocks(); }
  int64_t temperature_parts() const { return int64_t(schedule().backward_blocks()) * WARPS; }

  template <class Launch>
  void forward(C* pooled, const Launch& launch) const {
    const PoolInputs<S, C> inputs = prepare(launch);
    launch(Grid{schedule().blocks(), slices<PoolForward<S, C>>(x.interests()), x.chunks()},
           PoolForward<S, C>{inputs, schedule(), pooled});
  }

  // What `gradients` has no memory for is not computed. The categories' gradient takes [m, d] numbers of
  // `category_sums`.
  template <class Launch>
  void backward(const C* pooled_grad, const PoolGradients<S>& gradients, float* category_sums, C* categories_grad,
                float* temperature_grad, const Launch& launch) const {
    const bool by_dimension = gradients.items || gradients.gathered || gradients.categories;
    if (!by_dimension && !gradients.temperature) return;
    const PoolInputs<S, C> inputs = prepare(launch);
    launch(Grid{schedule().backward_blocks(), by_dimension ? x.chunks() : 1,
                gradients.categories ? slices<PoolBackward<S, C>>(x.m) : 1},
           PoolBackward<S, C>{inputs, schedule(), pooled_grad, are_whole<Four<C>>(pooled_grad, x.d), gradients});
    if (gradients.categories) {
      const int64_t size = int64_t(x.m) * x.d;
      launch(SumOfParts::grid(size), SumOfParts{gradients.categories, int(category_parts()), size, category_sums});
      launch(warps(x.m), UnitRowsBackward<C>{{}, categories, category_sums, x.m, x.d, true, categories_grad});
    }
    if (gradients.temperature)
      launch(SumOfParts::grid(1), SumOfParts{gradients.temperature, int(temperature_parts()), 1, temperature_grad});
  }

 private:
  template <class Kernel>
  static int slices(int rows) {
    return (rows + Kernel::SLICE - 1) / Kernel::SLICE;
  }

  // Whether rows of d consist of whole, aligned Pieces.
  template <class Piece, class T>
  static bool are_whole(const T* rows, int d) {
    return reinterpret_cast<uintptr_t>(rows) % alignof(Piece) == 0 && d * sizeof(T) % sizeof(Piece) == 0;
  }

  template <class Launch>
  PoolInputs<S, C> prepare(const Launch& launch) const {
    const int64_t width = int64_t(x.chunks()) * DEPTH;
    launch(warps(x.m), UnitCategories<C>{{}, categories, x.m, x.d, width, units});
    PoolInputs<S, C> inputs = x;
    inputs.categories = units;
    inputs.aligned = are_whole<Four<float>>(x.rows, x.d);
    return inputs;
  }
};

}  // namespace cmi_fast::cuda
