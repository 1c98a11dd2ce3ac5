// Routing with maps of their own for each place t of a sequence and interest k. Votes u_tk = W_tk x_t + c are computed
// for a block of sequences, place after place, so that a map is read once a block; they stay in the second cache while
// the block is routed. The last iteration's weights are constants to the gradient, so the backward needs no votes: with
// D_k the cotangents of the last sums,
//   dx_t = sum_k w_tk W_tk' D_k,   dW_tk = sum over sequences of w_tk D_k x_t',   dc = sum w_tk D_k.
// It runs place after place, so that a map's gradient is one sum, in the order of the sequences.
#pragma once

#include "cpu/kernels/capsule_steps.h"
#include "cpu/kernels/transpose.h"

namespace cmi_fast {
namespace {

template <class T>
struct CapsulesByPlace {
  using Problem = CapsuleRouting<T>;
  using Steps = CapsuleSteps<T>;
  using V = typename Steps::V;
  static constexpr int LANES = Steps::LANES;
  static constexpr int64_t PANEL = TILE_VECTORS * LANES;  // columns of a tile
  static constexpr int64_t GRADIENT_BLOCK = 64;           // sequences whose rows of one place are taken together
  static constexpr int64_t APART = 16;                    // rows of a power of two would share the sets of the caches

  // Everything padded with zeros, which add nothing.
  struct Shape {
    int64_t d, e, votes;  // votes: those of one item, [interests, e]
    int64_t rows, block;  // items of a sequence; sequences that are mapped together

    explicit Shape(const Problem& p)
        : d(round_up(p.d, LANES)),
          e(round_up(p.e, LANES > TILE_ROWS ? LANES : TILE_ROWS)),
          votes(round_up(p.interests * e, PANEL)),
          rows(round_up(p.longest, LANES)) {
      constexpr int64_t MEMORY = 512 << 10, MIN_BLOCK = 8,
                        MAX_BLOCK = 32;  // votes of a block: most of the second cache
      const int64_t fitting = MEMORY / (int64_t(sizeof(T)) * votes * (rows ? rows : 1)) / TILE_ROWS * TILE_ROWS;
      block = fitting < MIN_BLOCK ? MIN_BLOCK : fitting > MAX_BLOCK ? MAX_BLOCK : fitting;
    }
  };

  // Of one thread, forward: the block's items of one place [block, d], its votes [block, rows, votes], logits and
  // weights [interests, rows], sums and interests [interests, e].
  struct ForwardSpace {
    T *items, *votes, *logits, *weights, *z, *v, *bias;
    int64_t size;

    ForwardSpace(const Shape& s, const Problem& p, T* memory) {
      size = place_buffers({s.block * s.d, s.rows * s.block * s.votes, p.interests * s.rows, p.interests * s.rows,
                            p.interests * s.e, p.interests * s.e, s.votes},
                           {&items, &votes, &logits, &weights, &z, &v, &bias}, memory);
    }
  };

  // Of one thread, backward: rows of one place [GRADIENT_BLOCK, d], the weighted cotangents [GRADIENT_BLOCK, votes +
  // APART], the rows' gradients; a place's maps [votes, d] and their gradient.
  struct BackwardSpace {
    T *items, *cotangents, *gradient, *maps, *map_gradient;
    int64_t size;

    BackwardSpace(const Shape& s, T* memory) {
      size = place_buffers({GRADIENT_BLOCK * s.d, GRADIENT_BLOCK * (s.votes + APART), GRADIENT_BLOCK * s.d,
                            s.votes * s.d, s.votes * s.d},
                           {&items, &cotangents, &gradient, &maps, &map_gradient}, memory);
    }
  };

  static int64_t workspace_size(const Problem& p) {
    const Shape s(p);
    const int64_t forward = ForwardSpace(s, p, nullptr).size, backward = BackwardSpace(s, nullptr).size;
    return forward > backward ? forward : backward;
  }

  // Maps that meet less than a tile of sequences, as those of a single request, are read as they are: packing them
  // would take longer than the products.
  static bool packs(const Problem& p) { return p.sequences.batch >= TILE_ROWS; }

  // Each place's maps transposed, [d, votes], in panels of PANEL columns.
  static int64_t packed_size(const Problem& p) {
    const Shape s(p);
    return packs(p) ? p.places * s.d * s.votes : 0;
  }

  static void pack(const Problem& p, int64_t begin, int64_t end, T* packed) {
    if (!packs(p)) return;
    const Shape s(p);
    for (int64_t m = begin; m < end; ++m) {
      T* const place = packed + m / p.interests * s.d * s.votes;
      if (m % p.interests == 0) set_zero(place, s.d * s.votes);
      for (int64_t row = 0, count; row < p.e; row += count) {
        const int64_t column = m % p.interests * s.e + row, left = PANEL - column % PANEL;  // in its panel
        count = p.e - row < left ? p.e - row : left;
        transpose_matrix(p.maps + (m * p.e + row) * p.d, count, p.d, p.d,
                         place + column / PANEL * PANEL * s.d + column % PANEL, PANEL);
      }
    }
  }

  // The votes of sequences first .. first + count at every place that one of them has.
  static void map_items(const Problem& p, const Shape& s, int64_t first, int64_t count, const ForwardSpace& w) {
    int64_t longest = 0;
    for (int64_t i = 0; i < count; ++i)
      longest = p.sequences.length(first + i) > longest ? p.sequences.length(first + i) : longest;
    for (int64_t t = 0; t < longest; ++t) {
      T* const votes = w.votes + t * s.votes;
      for (int64_t i = 0; i < count; ++i) {
        if (t < p.sequences.length(first + i)) {
          Steps::load_row(p.items, p.sequences.first(first + i) + t, p.d, s.d, w.items + i * s.d);
          prefetch_items<T>(p.items, p.sequences, p.d, first + i, t + 2, 1);
        } else
          set_zero(w.items + i * s.d, s.d);
        if (p.bias) copy(w.bias, s.votes, votes + i * s.rows * s.votes);
      }
      for (int64_t column = 0; column < s.votes; column += PANEL)
        product<V, TILE_ROWS, TILE_VECTORS>(round_up(count, TILE_ROWS), PANEL, p.d, Scalars<T>{w.items, s.d, 1},
                                            p.packed + t * s.d * s.votes + column * s.d, PANEL, votes + column,
                                            s.rows * s.votes, p.bias);
    }
  }

  // The votes of sequence b, from maps as they are.
  static void map_unpacked(const Problem& p, const Shape& s, int64_t b, const ForwardSpace& w, T* votes) {
    for (int64_t t = 0; t < p.sequences.length(b); ++t) {
      const T* item = read_row(p.items, p.sequences.first(b) + t, p.d, w.items);
      copy(w.bias, s.votes, votes + t * s.votes);
      for (int64_t row = 0; row < p.interests * p.e; ++row) {
        const T* map = p.maps + (t * p.interests * p.e + row) * p.d;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < p.d; ++j) sum += map[j] * item[j];
        votes[t * s.votes + row / p.e * s.e + row % p.e] += sum;
      }
    }
  }

  // Adds the agreement of each vote with its interest to the logits.
  static void update_logits(const Problem& p, const Shape& s, int64_t length, const T* votes, const ForwardSpace& w) {
    for (int64_t t = 0; t < length; ++t)
      for (int64_t k = 0; k < p.interests; ++k)
        w.logits[k * s.rows + t] += Steps::dot(votes + t * s.votes + k * s.e, w.v + k * s.e, s.e);
  }

  static void route(const Problem& p, const Shape& s, int64_t b, const T* votes, const ForwardSpace& w,
                    const CapsuleRoutingResult<T>& result) {
    const int64_t length = p.sequences.length(b);
    Steps::load_logits(p, b, s.rows, w.logits);
    for (int64_t i = 0; i < p.iterations; ++i) {
      if (i > 0) update_logits(p, s, length, votes, w);
      Steps::softmax(p.interests, Steps::active(p, b), length, s.rows, w.logits, w.weights);
      for (int64_t k = 0; k < p.interests; ++k) {
        product<V, 1, TILE_VECTORS>(1, s.e, length, Scalars<T>{w.weights + k * s.rows, s.rows, 1}, votes + k * s.e,
                                    s.votes, w.z + k * s.e, s.e, false);
        Steps::squash(w.z + k * s.e, s.e, w.v + k * s.e);
      }
    }
    Steps::write_result(p, b, s.rows, s.e, w.weights, w.z, w.v, result);
  }

  static void forward(const Problem& p, int64_t begin, int64_t end, const CapsuleRoutingResult<T>& result, T* memory) {
    const Shape s(p);
    const ForwardSpace w(s, p, memory);
    set_zero(w.items, s.block * s.d);
    set_zero(w.bias, s.votes);
    for (int64_t k = 0; p.bias && k < p.interests; ++k) copy(p.bias, p.e, w.bias + k * s.e);
    for (int64_t first = begin; first < end; first += s.block) {
      const int64_t count = end - first < s.block ? end - first : s.block;
      if (packs(p)) map_items(p, s, first, count, w);
      for (int64_t i = 0; i < count; ++i) {
        T* const votes = w.votes + i * s.rows * s.votes;
        if (!packs(p)) map_unpacked(p, s, first + i, w, votes);
        route(p, s, first + i, votes, w, result);
      }
    }
  }

  // The gradients of the rows of one place of `count` sequences, and what they add to the place's maps and bias.
  static void differentiate(const Problem& p, const Shape& s, int64_t t, const int64_t* sequences, int64_t count,
                            const CapsuleRoutingGradients<T>& gradients, const BackwardSpace& w, T* bias) {
    const int64_t stride = s.votes + APART;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = sequences[i], first = p.sequences.first(b), length = p.sequences.length(b);
      if (gradients.maps) {
        Steps::load_row(p.items, first + t, p.d, s.d, w.items + i * s.d);
        prefetch_items<T>(p.items, p.sequences, p.d, b + GRADIENT_BLOCK, t, 1);
      }
      for (int64_t k = 0; k < p.interests; ++k) {
        const T weight = gradients.weights[first * p.interests + k * length + t];
        const T* from = gradients.sums + (b * p.interests + k) * p.e;
        T* const to = w.cotangents + i * stride + k * s.e;
#pragma omp simd
        for (int64_t j = 0; j < p.e; ++j) to[j] = weight * from[j];
        if (bias) add(to, p.e, bias);
      }
    }
    for (int64_t k = 0; k < p.interests; ++k) {
      if (gradients.items.data)
        product<V, TILE_ROWS, TILE_VECTORS>(round_up(count, TILE_ROWS), s.d, p.e,
                                            Scalars<T>{w.cotangents + k * s.e, stride, 1}, w.maps + k * s.e * s.d, s.d,
                                            w.gradient, s.d, k > 0);
      if (gradients.maps)
        product<V, TILE_ROWS, TILE_VECTORS>(s.e, s.d, count, Scalars<T>{w.cotangents + k * s.e, 1, stride}, w.items,
                                            s.d, w.map_gradient + k * s.e * s.d, s.d, true);
    }
    for (int64_t i = 0; gradients.items.data && i < count; ++i)
      write_gradient(w.gradient + i * s.d, p.sequences.first(sequences[i]) + t, p.d, gradients.items, gradients.stream);
  }

  static void backward(const Problem& p, int64_t begin, int64_t end, const CapsuleRoutingGradients<T>& gradients,
                       T* memory) {
    const Shape s(p);
    const BackwardSpace w(s, memory);
    set_zero(memory, w.size);
    for (int64_t t = begin; t < end; ++t) {
      set_zero(w.map_gradient, s.votes * s.d);
      const int64_t maps = p.interests * p.e;  // rows of a place
      for (int64_t k = 0; k < p.interests; ++k)
        Steps::load_rows(p.maps + (t * maps + k * p.e) * p.d, p.e, p.d, s.d, w.maps + k * s.e * s.d);
      T* const bias = gradients.bias ? gradients.bias + t * p.e : nullptr;
      if (bias) set_zero(bias, p.e);
      int64_t sequences[GRADIENT_BLOCK], count = 0;
      for (int64_t b = 0; b < p.sequences.batch; ++b) {
        if (t < p.sequences.length(b))
          sequences[count++] = b;
        else if (gradients.items.data && t < p.sequences.rows(b))
          clear_gradients<T>(p.sequences.first(b) + t, p.sequences.first(b) + t + 1, p.d, gradients.items,
                             gradients.stream);
        if (count == GRADIENT_BLOCK || (count > 0 && b + 1 == p.sequences.batch)) {
          differentiate(p, s, t, sequences, count, gradients, w, bias);
          count = 0;
        }
      }
      finish_streaming();
      if (!gradients.maps) continue;
      T* const to = gradients.maps + t * maps * p.d;
      for (int64_t row = 0; row < maps; ++row)
        copy(w.map_gradient + (row / p.e * s.e + row % p.e) * s.d, p.d, to + row * p.d);
    }
  }

  static constexpr CapsuleRoutingKernel<T> KERNEL{packed_size, workspace_size, pack, forward, backward};
};

}  // namespace
}  // namespace cmi_fast
