// The interface between the operators (torch, threads, memory) and their torch-free loops, built once per ISA level.
#pragma once

#include "cpu/kernels/element.h"
#include "cpu/kernels/sequences.h"
#include "cpu/kernels/table_gradient.h"

namespace cmi_fast {

template <class T>
struct SoftAssignmentPool {
  Sequences sequences;
  ConstRows items;     // [rows, d], or the table [V, d] that ids index
  const int64_t* ids;  // [rows], or null: the items are the rows themselves
  const bool* views;   // [view_count, rows], or null: one view that holds everything
  int64_t view_count, rows;
  int64_t categories, d;  // m, d
  Element pooled;         // of interests and categories, and what items are rounded to where it is narrower
  T inverse_temperature;
  const T* packed;  // unit categories, packed by pack_categories
};

template <class T>
struct SoftAssignmentPoolGradients {
  const void* pooled;    // [view_count, batch, m, d], the cotangent
  MutableRows items;     // [rows, d], or of the table [V, d]; data null: not wanted
  T* shared;             // gradients of table rows that several items read, before their sum
  const int32_t* place;  // [rows]: the row of `shared` that an item's gradient goes to, or NOT_SHARED; null: none is
  bool stream;           // write rows of T past the caches: they are whole cache lines
  T* categories;         // [m, d] partial sum of this call, with respect to the unit categories; or null
  T* temperature;        // [1] partial sum of this call, or null
};

template <class T>
struct SoftAssignmentPoolKernel {
  int64_t (*packed_size)(int64_t categories, int64_t d);
  int64_t (*workspace_size)(int64_t categories, int64_t d, int64_t view_count);
  void (*pack_categories)(ConstRows categories, int64_t m, int64_t d, T* packed);
  // Both take the sequences begin .. end. Partial sums are overwritten, not added to.
  void (*forward)(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end, void* pooled, T* workspace);
  void (*backward)(const SoftAssignmentPool<T>& p, int64_t begin, int64_t end,
                   const SoftAssignmentPoolGradients<T>& gradients, T* workspace);
  // Through the normalisation: gradient [m, d] = (g - c (c . g)) / |category|, for g the sum of all partial sums.
  void (*unpack_category_gradient)(const SoftAssignmentPool<T>& p, const T* sum, void* gradient);
};

struct SoftAssignmentPoolKernels {
  SoftAssignmentPoolKernel<float> float32;
  SoftAssignmentPoolKernel<double> float64;
};

}  // namespace cmi_fast
