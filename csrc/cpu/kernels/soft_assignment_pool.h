// The interface between the operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include "cpu/kernels/sequences.h"

namespace cmi_fast {

template <class T>
struct SoftAssignmentPool {
  Sequences sequences;
  const T* items;         // [rows, d]
  int64_t categories, d;  // m, d
  T inverse_temperature;
  const T* packed;  // unit categories, packed by pack_categories
};

template <class T>
struct SoftAssignmentPoolGradients {
  const T* pooled;  // [batch, m, d], the cotangent
  T* items;         // [rows, d], or null: not wanted
  bool stream;      // write them past the caches: a row is whole cache lines
  T* categories;    // [m, d] partial sum of this call, with respect to the unit categories; or null
  T* temperature;   // [1] partial sum of this call, or null
};

template <class T>
struct SoftAssignmentPoolKernel {
  int64_t (*packed_size)(int64_t categories, int64_t d);
  int64_t (*workspace_size)(int64_t categories, int64_t d);
  void (*pack_categories)(const T* categories, int64_t m, int64_t d, T* packed);
  // Both take the sequences begin .. end. Partial sums are overwritten, not added to.
  void (*forward)(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end, T* pooled, T* workspace);
  void (*backward)(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end,
                   const SoftAssignmentPoolGradients<T>& gradients, T* workspace);
  // Through the normalisation: gradient [m, d] = (g - c (c . g)) / |category|, for g the sum of all partial sums.
  void (*unpack_category_gradient)(const SoftAssignmentPool<T>& p, const T* sum, T* gradient);
};

struct SoftAssignmentPoolKernels {
  SoftAssignmentPoolKernel<float> float32;
  SoftAssignmentPoolKernel<double> float64;
};

}  // namespace cmi_fast
