// A GPU's block of threads on one CPU thread: every CUDA thread is a fiber that runs until it meets others, at a
// barrier or in a warp's instruction. What the tensor cores and ldmatrix do is written from the PTX manual's tables,
// matrices first, without a line of the kernels. Blocks run one after another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda/machine.h"

namespace cmi_fast::cuda {

// Runs body(place) for each thread of each block of the grid, a block's warps one after the other between two barriers,
// in either order: a missing barrier shows as another result, and threads that do not meet fail the test.
void run_grid(Grid grid, int threads, bool descending, const std::function<void(Place)>& body);

void sync_threads();
void sync_warp();
float shuffle_xor(float x, int mask);
// Copies are made as late as may be: when their thread waits.
void copy_async(void* shared, const void* global, bool valid);
void wait_for_copies();
void load_matrices(uint32_t (&to)[4], const void* row);
void load_transposed(uint32_t (&to)[4], const void* row);
void multiply_add(BFloat16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add(Half, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

float widen(BFloat16 x);
float widen(Half x);
inline float widen(float x) { return x; }
void narrow(float x, BFloat16* to);
void narrow(float x, Half* to);
inline void narrow(float x, float* to) { *to = x; }

inline float fast_exp2(float x) { return std::exp2(x); }
inline float max_or_nan(float a, float b) { return std::isnan(a) || a > b ? a : b; }

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace cmi_fast::cuda
