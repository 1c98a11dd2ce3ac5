// The interface between the routing's operator (torch, threads, memory) and its torch-free loops, built once per ISA
// level. Maps of items to votes are either the same at every place of a sequence, or others at each.
#pragma once

#include "cpu/kernels/element.h"
#include "cpu/kernels/sequences.h"

namespace cmi_fast {

template <class T>
struct CapsuleRouting {
  Sequences sequences;
  int64_t longest;    // sequence
  ConstRows items;    // [rows, d]
  const T* maps;      // [places, map_count, e, d]
  int64_t places;     // 1: the same at every place; else at least as many as a sequence has rows, padding included
  int64_t map_count;  // 1 or interests
  int64_t interests, d, e;
  const T* bias;          // [e], or null
  const T* logits;        // [rows, interests], or null
  const int64_t* active;  // [batch], or null
  int64_t iterations;
  const T* packed;  // by pack; of size 0 where maps are read as they are
};

// What the forward leaves: the interests; for the backward the last weights, of each sequence [interests, length] from
// the place of its first row on, the sums [batch, interests, e] before squashing, and of maps that are the same
// everywhere the sums of items [batch, interests, d].
template <class T>
struct CapsuleRoutingResult {
  MutableRows interests;
  T *weights, *sums, *pooled;
};

template <class T>
struct CapsuleRoutingGradients {
  const T* weights;   // by forward
  const T* pooled;    // by forward
  const T* sums;      // [batch, interests, e], cotangents of the sums, by cotangents
  MutableRows items;  // [rows, d], or data null: not wanted
  bool stream;        // the items' past the caches
  T *maps, *bias;     // see the kernel; or null: not wanted
};

template <class T>
struct CapsuleRoutingKernel {
  int64_t (*packed_size)(const CapsuleRouting<T>& p);
  int64_t (*workspace_size)(const CapsuleRouting<T>& p);
  // The maps from begin .. end of the places * map_count, as the forward wants them.
  void (*pack)(const CapsuleRouting<T>& p, int64_t begin, int64_t end, T* packed);
  // The sequences begin .. end.
  void (*forward)(const CapsuleRouting<T>& p, int64_t begin, int64_t end, const CapsuleRoutingResult<T>& result,
                  T* workspace);
  // Maps that are the same everywhere: of the sequences begin .. end, with partial sums of the gradients of maps
  // [map_count, e, d] and bias [e], overwritten. Others: of the places begin .. end, whose maps' gradients
  // [interests, e, d] and share of the bias's [e] are written to maps + place * interests * e * d and bias + place * e.
  void (*backward)(const CapsuleRouting<T>& p, int64_t begin, int64_t end, const CapsuleRoutingGradients<T>& gradients,
                   T* workspace);
};

template <class T>
struct CapsuleRoutingKernelPair {
  CapsuleRoutingKernel<T> everywhere, by_place;
  // Through the squashing: cotangents of the sums [count, e] from those of the interests, of rows begin .. end.
  void (*cotangents)(const T* sums, ConstRows interests_grad, int64_t e, int64_t begin, int64_t end, T* sums_grad);
};

struct CapsuleRoutingKernels {
  CapsuleRoutingKernelPair<float> float32;
  CapsuleRoutingKernelPair<double> float64;
};

}  // namespace cmi_fast
