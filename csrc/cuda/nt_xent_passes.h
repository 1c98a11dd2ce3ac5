// nt_xent_loss as a sequence of kernels. launch(grid, kernel) runs one: on a GPU, or in the tests' emulator.
#pragma once

#include "cuda/kernels/nt_xent_rows.h"

namespace cmi_fast::cuda {

// Unit rows bound the scores by 1/t: from this t on, all anchors may share the shift 1/t in float32.
constexpr double SHARED_SHIFT_FROM = 0.025;

template <class T>
struct NtXentPasses {
  const T *first, *second;  // [pairs, d]
  int pairs, d;
  float temperature;
  const float* temperature_pointer;  // where it is a tensor
  bool cross_view, both, normalize;
  // What the passes write first; sizes below.
  T* panel;
  RowFactors* factors;

  static int width(int64_t d) { return int((d + 15) / 16 * 16); }
  int64_t panel_size() const { return 2 * int64_t(pairs) * width(d); }
  int64_t rows() const { return 2 * int64_t(pairs); }
  int anchor_views() const { return both ? 2 : 1; }
  // Whether each anchor needs a maximum of its own. No value is waited for.
  bool running() const { return !normalize || temperature_pointer || temperature < SHARED_SHIFT_FROM; }
  TriangleSchedule schedule() const { return TriangleSchedule::of(cross_view ? pairs : rows(), TILE); }
  int64_t partial_size() const { return running() ? 0 : schedule().parts * rows(); }

  // partial [partial_size()] holds zeros; log_sum [2 pairs], losses [anchors].
  template <class Launch>
  void forward(float* partial, float* log_sum, float* losses, const Launch& launch) const {
    const NtXent<T> x = prepare(launch);
    const TriangleSchedule triangle = schedule();
    if (running())
      launch(Grid{tiles_of_a_view(), anchor_views()}, RunningLogSums<T>{x, log_sum});
    else if (cross_view)
      launch(Grid{triangle.parts, triangle.parts}, TriangleSums<T>{x, triangle, partial});
    else
      launch(Grid{triangle.triangle_blocks()}, TriangleSums<T>{x, triangle, partial});
    launch(warps(pairs),
           PairLosses<T>{{}, x, anchor_views(), running() ? nullptr : partial, triangle.parts, log_sum, losses});
  }

  // unit_grad [2 pairs, d] and along [2 pairs] are room to work in, as are the two numbers of `scale`, for float16. Of
  // the gradients those that are null are not computed.
  template <class Launch>
  void backward(const float* losses_grad, const float* log_sum, float* unit_grad, float* along, float* scale,
                T* first_grad, T* second_grad, float* temperature_grad, const Launch& launch) const {
    const bool views[2] = {first_grad || temperature_grad, second_grad || temperature_grad};
    const int first_view = views[0] ? 0 : 1, view_count = int(views[0]) + int(views[1]);
    if (view_count == 0) return;
    const NtXent<T> x = prepare(launch);
    const float* const unscale = scale ? scale + 1 : nullptr;
    if (scale) launch(Grid{1}, HalfRange{{}, losses_grad, anchor_views() * pairs, scale});
    launch(warps(pairs), PairWeights<T>{{}, x, anchor_views(), losses_grad, log_sum, scale, factors, along});
    const Grid grid{tiles_of_a_view(), x.panel.chunks(), view_count};
    if (running())
      launch(grid, Gradient<T, true>{x, first_view, unscale, unit_grad, along});
    else
      launch(grid, Gradient<T, false>{x, first_view, unscale, unit_grad, along});
    const T* const inputs[2] = {first, second};
    T* const gradients[2] = {first_grad, second_grad};
    for (int view = 0; view < 2; ++view) {
      const int64_t row = int64_t(view) * pairs;
      if (gradients[view])
        launch(warps(pairs),
               UnitRowsBackward<T>{{}, inputs[view], unit_grad + row * d, pairs, d, normalize, gradients[view]});
    }
    if (temperature_grad) launch(Grid{1}, TemperatureGradient<T>{{}, x, along, unscale, temperature_grad});
  }

 private:
  int tiles_of_a_view() const { return (pairs + TILE - 1) / TILE; }

  template <class Launch>
  NtXent<T> prepare(const Launch& launch) const {
    launch(warps(rows()), PanelRows<T>{{}, first, second, pairs, d, width(d), normalize, panel, factors});
    return {{panel, factors, width(d)}, pairs, d, temperature, temperature_pointer, cross_view};
  }
};

}  // namespace cmi_fast::cuda
