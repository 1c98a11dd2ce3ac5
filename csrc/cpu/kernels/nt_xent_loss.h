// The interface between the operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include <cstdint>

#include "cpu/kernels/half.h"

namespace cmi_fast {

// Scores are kept in base-2 units throughout: s_ij = log2(e) / t * z_i . z_j.
template <class T>
struct NtXentLoss {
  using C = Compute<T>;
  const T *first, *second;  // [pairs, d] each: row i of one is the positive of row i of the other
  int64_t pairs, d;
  C inverse_temperature;
  bool cross_view;  // negatives from the other view only
  bool both;        // anchors are the rows of both views; otherwise only those of the first
  bool normalize;
  bool running;  // scores need a running maximum; otherwise they are at most log2(e) / t

  // Buffers that the passes fill, of the sizes of NtXentLossKernel::sizes.
  C* panels;       // the 2 pairs rows as the products read them
  C* inverse;      // 1 / |row|
  C* factors;      // what the panels' rows lack to be the rows, where the level has such panels
  double* sums;    // sum over an anchor's negatives of 2^(s - shift)
  double* slopes;  // sums of G_ij s_ij, in the first row of each tile; null: no gradient of the temperature is wanted
  C* maxima;       // with a running maximum the anchor's shift, else unused
  C* weights;      // backward: w_i sigma_i of every anchor
  C* scaled_weights;  // backward: that over the anchor's sum, times its factor; with a running maximum L_i
  C* gradient;        // of the rows; null in the forward

  int64_t partner(int64_t i) const { return i < pairs ? i + pairs : i - pairs; }
};

template <class T>
struct NtXentLossKernel {
  using C = Compute<T>;
  struct Sizes {
    int64_t tiles, panels, gradient, anchors, workspace;  // as numbers of type C; `anchors` of each other buffer
  };
  Sizes (*sizes)(int64_t pairs, int64_t d);
  // Tiles of rows are the unit of work: pack starts their part of every buffer, the pair functions take tiles
  // a_begin .. a_end against b_begin .. b_end (the same range: each pair of tiles once).
  void (*pack)(const NtXentLoss<T>& p, int64_t begin, int64_t end);
  void (*add_sums)(const NtXentLoss<T>& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                   C* workspace);
  void (*add_gradient)(const NtXentLoss<T>& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                       C* workspace);
  // losses [anchors], log_sum [2 pairs]: base-2 log-sum-exp over the negatives.
  void (*finish_losses)(const NtXentLoss<T>& p, int64_t begin, int64_t end, C* losses, C* log_sum);
  void (*start_gradient)(const NtXentLoss<T>& p, int64_t begin, int64_t end, const C* losses_grad, const C* log_sum);
  // Gradients of first and second [pairs, d], null where not wanted; returns this range's part of the temperature's.
  double (*finish_gradient)(const NtXentLoss<T>& p, int64_t begin, int64_t end, T* first, T* second);
};

struct NtXentLossKernels {
  NtXentLossKernel<float> float32;
  NtXentLossKernel<double> float64;
  NtXentLossKernel<BFloat16> bfloat16;
  NtXentLossKernel<Half> float16;
};

}  // namespace cmi_fast
