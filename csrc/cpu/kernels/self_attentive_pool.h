// The interface between the self-attentive pooling's operator (torch, threads, memory) and its torch-free loops, built
// once per ISA level.
#pragma once

#include "cpu/kernels/element.h"
#include "cpu/kernels/sequences.h"

namespace cmi_fast {

struct SelfAttentivePoolSizes {
  int64_t interests, hidden, d;
  int64_t places;   // rows of positions; 0 without
  int64_t longest;  // sequence
};

template <class T>
struct SelfAttentivePool {
  Sequences sequences;
  ConstRows items;  // [rows, d]
  SelfAttentivePoolSizes sizes;
  const T* packed;
};

// Parameters, or gradients of them: weight [hidden, d], queries [interests, hidden], bias [hidden], positions [places,
// d]. Null for those that are not there, and for gradients that are not wanted.
template <class T>
struct SelfAttentivePoolParameters {
  T *weight, *queries, *bias, *positions;
};

template <class T>
struct SelfAttentivePoolGradients {
  ConstRows pooled;    // [batch, interests, d], the cotangent of the interests
  const T* attention;  // [rows, interests], by forward
  MutableRows items;   // [rows, d], or data null: not wanted
  bool stream;         // the items' past the caches
  T* parameters;       // partial sum of this call, gradient_size of them; or null
};

template <class T>
struct SelfAttentivePoolKernel {
  int64_t (*packed_size)(const SelfAttentivePoolSizes& sizes);
  int64_t (*workspace_size)(const SelfAttentivePoolSizes& sizes);
  int64_t (*gradient_size)(const SelfAttentivePoolSizes& sizes);
  void (*pack)(const SelfAttentivePoolParameters<const T>& parameters, const SelfAttentivePoolSizes& sizes, T* packed);
  // Both take the sequences begin .. end. Partial sums are overwritten, not added to.
  void (*forward)(const SelfAttentivePool<T>& p, int64_t begin, int64_t end, MutableRows pooled, T* attention,
                  T* workspace);
  void (*backward)(const SelfAttentivePool<T>& p, int64_t begin, int64_t end,
                   const SelfAttentivePoolGradients<T>& gradients, T* workspace);
  void (*unpack_gradients)(const T* sum, const SelfAttentivePoolSizes& sizes,
                           const SelfAttentivePoolParameters<T>& gradients);
};

struct SelfAttentivePoolKernels {
  SelfAttentivePoolKernel<float> float32;
  SelfAttentivePoolKernel<double> float64;
};

}  // namespace cmi_fast
