// The interface between the operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include "cpu/kernels/element.h"

namespace cmi_fast {

// Candidates are taken in tiles of so many; the last tile is padded.
constexpr int64_t CANDIDATE_TILE = 64;

template <class T>
struct InterestSoftmaxLoss {
  ConstRows interests, candidates;  // [users, m, d], [count, d]
  ConstRows general, bias;          // [users, d], [count]; or data null
  const int64_t* targets;           // [users]
  const bool* exclude;              // [users, count], or null
  const int64_t* ids;               // [count], or null
  int64_t users, m, count, d;
  T inverse_temperature;

  // Buffers of the sizes of InterestSoftmaxLossKernel::sizes.
  T* queries;        // u_k / t + u_g, padded rows
  T* columns;        // forward: each tile of candidates transposed, [d, CANDIDATE_TILE]
  T* biases;         // forward: [tiles, CANDIDATE_TILE]
  T* rows;           // backward: candidates, padded rows
  T* sums;           // forward: [users, tiles], of the exponentials
  T* target_scores;  // forward: [users]
};

// With lse_b = log sum_c e^(s_bc), candidate c of `tile` has the share e^(s_bc - lse_b) = scales[b, tile] *
// exponentials[tile, b, c] of user b's softmax. The target's exponential is 0 in place of its own.
template <class T>
struct InterestSoftmaxLossOutputs {
  T* losses;        // [users]
  T* exponentials;  // [tiles, users, CANDIDATE_TILE]
  T* scales;        // [users, tiles]; until finish_losses the largest score of the tile
  T* misses;        // [users], the share of all candidates but the target
  uint8_t* best;    // [tiles, users, CANDIDATE_TILE], the interest that scores highest
};

template <class T>
struct InterestSoftmaxLossGradients {
  const T *losses, *exponentials, *scales, *misses;  // the losses' cotangents and the forward's outputs
  const uint8_t* best;
  MutableRows interests, candidates, general, bias;  // as the inputs; or data null: not wanted
};

template <class T>
struct InterestSoftmaxLossKernel {
  struct Sizes {
    int64_t tiles;
    int64_t strip;  // users that the loops take at a time: ranges of users start at multiples of it
    int64_t queries, columns, rows, workspace;
  };
  Sizes (*sizes)(int64_t users, int64_t m, int64_t count, int64_t d);
  // Ranges of users for pack_queries, of tiles for the others.
  void (*pack_queries)(const InterestSoftmaxLoss<T>& p, int64_t begin, int64_t end, T* workspace);
  void (*pack_columns)(const InterestSoftmaxLoss<T>& p, int64_t begin, int64_t end, T* workspace);
  void (*pack_rows)(const InterestSoftmaxLoss<T>& p, int64_t begin, int64_t end);
  // Exponentials and best interests of the users with the tiles' candidates.
  void (*score)(const InterestSoftmaxLoss<T>& p, const InterestSoftmaxLossOutputs<T>& outputs, int64_t user_begin,
                int64_t user_end, int64_t tile_begin, int64_t tile_end, T* workspace);
  // Losses and scales of users.
  void (*finish_losses)(const InterestSoftmaxLoss<T>& p, const InterestSoftmaxLossOutputs<T>& outputs, int64_t begin,
                        int64_t end);
  // Gradients of the users' interests and general interests; returns these users' part of the temperature's.
  double (*user_gradients)(const InterestSoftmaxLoss<T>& p, const InterestSoftmaxLossGradients<T>& gradients,
                           int64_t begin, int64_t end, T* workspace);
  // Gradients of the candidates and biases of the tiles.
  void (*candidate_gradients)(const InterestSoftmaxLoss<T>& p, const InterestSoftmaxLossGradients<T>& gradients,
                              int64_t begin, int64_t end, T* workspace);
};

struct InterestSoftmaxLossKernels {
  InterestSoftmaxLossKernel<float> float32;
  InterestSoftmaxLossKernel<double> float64;
};

}  // namespace cmi_fast
