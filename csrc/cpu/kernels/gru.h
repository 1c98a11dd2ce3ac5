// The interface between the GRU operator (torch, threads, memory) and its torch-free loops, built once per ISA level.
#pragma once

#include "cpu/kernels/element.h"
#include "cpu/kernels/sequences.h"
#include "cpu/kernels/table_gradient.h"

namespace cmi_fast {

// Sequences that run through time together: what one thread does at a time is a multiple of the tiles' rows.
constexpr int64_t GRU_BLOCK_STEP = 8, GRU_BLOCK_MAX = 32;

template <class T>
struct Gru {
  Sequences sequences;
  const int64_t* order;        // [batch], the sequences from the longest to the shortest
  int64_t block;               // sequences that run together
  const int64_t* first_saved;  // [blocks], the first saved row of each block
  ConstRows items;             // [rows, d], or the table [V, d] that ids index
  const int64_t* ids;          // [rows], or null: the items are the rows themselves
  bool normalize;              // items are scaled to unit length
  int64_t d, hidden;
  const T* packed;  // by pack_weights
};

template <class T>
struct GruGradients {
  ConstRows last;        // [batch, hidden], the cotangent of the last states
  const T* saved;        // by forward
  MutableRows items;     // [rows, d], or of the table [V, d]; data null: not wanted
  T* shared;             // gradients of table rows that several items read, before their sum
  const int32_t* place;  // [rows]: the row of `shared` that an item's gradient goes to, or NOT_SHARED; null: none is
  bool stream;           // write rows of T past the caches: they are whole cache lines
  T* parameters;         // partial sum of this call, gradient_size of them; or null
};

// As torch.nn.GRU has them, each in the gates' order r, z, n. Data is null for biases that are not there and for
// gradients that are not wanted.
template <class Rows>
struct GruParameters {
  Rows weight_ih, weight_hh;  // [3 hidden, d], [3 hidden, hidden]
  Rows bias_ih, bias_hh;      // [3 hidden]
};

template <class T>
struct GruKernel {
  int64_t (*packed_size)(int64_t d, int64_t hidden);
  int64_t (*workspace_size)(int64_t d, int64_t hidden);
  int64_t (*saved_size)(int64_t hidden);  // of one item
  int64_t (*gradient_size)(int64_t d, int64_t hidden);
  void (*pack_weights)(const GruParameters<ConstRows>& parameters, int64_t d, int64_t hidden, T* packed);
  // Both take the sequences order[begin] .. order[end], whole blocks. What the backward needs is saved unless null;
  // partial sums are overwritten, not added to.
  void (*forward)(const Gru<T>& p, int64_t begin, int64_t end, MutableRows last, T* saved, T* workspace);
  void (*backward)(const Gru<T>& p, int64_t begin, int64_t end, const GruGradients<T>& gradients, T* workspace);
  void (*unpack_gradients)(const T* sum, int64_t d, int64_t hidden, const GruParameters<MutableRows>& gradients);
};

struct GruKernels {
  GruKernel<float> float32;
  GruKernel<double> float64;
};

}  // namespace cmi_fast
