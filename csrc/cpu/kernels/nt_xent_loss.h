// The interface between the operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include <cstdint>

namespace cmi_fast {

// Scores are kept in base-2 units throughout: s_ij = log2(e) / t * z_i . z_j.
template <class T>
struct NtXentLoss {
  const T *first, *second;  // [pairs, d] each: row i of one is the positive of row i of the other
  int64_t pairs, d;
  T inverse_temperature;
  bool cross_view;  // negatives from the other view only
  bool both;        // anchors are the rows of both views; otherwise only those of the first
  bool normalize;
  bool running;  // scores need a running maximum; otherwise they are at most log2(e) / t

  // Buffers that the passes fill, of the sizes of NtXentLossKernel::sizes.
  T* rows;            // the 2 pairs rows, unit if normalised, and
  T* columns;         // the same transposed, times log2(e) / t
  T* inverse;         // 1 / |row|
  double* sums;       // sum over an anchor's negatives of 2^(s - shift)
  T* maxima;          // with a running maximum the anchor's shift, else unused
  T* weights;         // backward: w_i sigma_i of every anchor
  T* scaled_weights;  // backward: that over the anchor's sum
  T* gradient;        // of the rows; null in the forward
};

template <class T>
struct NtXentLossKernel {
  struct Sizes {
    int64_t tiles, rows, anchors, workspace;  // `rows` elements for rows, columns, gradient; `anchors` for the others
  };
  Sizes (*sizes)(int64_t pairs, int64_t d);
  // Tiles of rows are the unit of work: pack starts their part of every buffer, the pair functions take tiles
  // a_begin .. a_end against b_begin .. b_end (the same range: each pair of tiles once).
  void (*pack)(const NtXentLoss<T>& p, int64_t begin, int64_t end);
  void (*add_sums)(const NtXentLoss<T>& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                   T* workspace);
  void (*add_gradient)(const NtXentLoss<T>& p, int64_t a_begin, int64_t a_end, int64_t b_begin, int64_t b_end,
                       T* workspace);
  // losses [anchors], log_sum [2 pairs]: base-2 log-sum-exp over the negatives.
  void (*finish_losses)(const NtXentLoss<T>& p, int64_t begin, int64_t end, T* losses, T* log_sum);
  void (*start_gradient)(const NtXentLoss<T>& p, int64_t begin, int64_t end, const T* losses_grad, const T* log_sum);
  // Gradients of first and second [pairs, d], null where not wanted; returns this range's part of the temperature's.
  double (*finish_gradient)(const NtXentLoss<T>& p, int64_t begin, int64_t end, T* first, T* second);
};

struct NtXentLossKernels {
  NtXentLossKernel<float> float32;
  NtXentLossKernel<double> float64;
};

}  // namespace cmi_fast
