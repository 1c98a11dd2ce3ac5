// What kernels ask of the machine. nvcc compiles the kernels for a GPU with the definitions below; any other compiler
// takes tests/cpp/cuda_emulator.h, which runs the same kernels lane by lane on a CPU.
#pragma once

#include <cstdint>

#include "cpu/kernels/half.h"

#if defined(__CUDACC__)
#define CMI_FAST_HOST_DEVICE __host__ __device__
#define CMI_FAST_DEVICE __device__ __forceinline__
#define CMI_FAST_UNROLL _Pragma("unroll")
#else
#define CMI_FAST_HOST_DEVICE
#define CMI_FAST_DEVICE inline
#define CMI_FAST_UNROLL
#endif

namespace cmi_fast::cuda {

constexpr int LANES = 32;                          // of a warp
constexpr int WARPS = 4, THREADS = WARPS * LANES;  // of a block

// Numbers of blocks.
struct Grid {
  int x = 1, y = 1, z = 1;
};

// Where a thread is.
struct Place {
  int thread, block_x, block_y, block_z;

  CMI_FAST_HOST_DEVICE int warp() const { return thread / LANES; }
  CMI_FAST_HOST_DEVICE int lane() const { return thread % LANES; }
};

}  // namespace cmi_fast::cuda

#if !defined(__CUDACC__)
#include "cuda_emulator.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need compute capability 8.0 or later"
#endif

namespace cmi_fast::cuda {

CMI_FAST_DEVICE Place here() { return {int(threadIdx.x), int(blockIdx.x), int(blockIdx.y), int(blockIdx.z)}; }

CMI_FAST_DEVICE void sync_threads() { __syncthreads(); }
CMI_FAST_DEVICE void sync_warp() { __syncwarp(); }
CMI_FAST_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

CMI_FAST_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
CMI_FAST_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// Exact to two units of the last place; below 2^-126 zero.
CMI_FAST_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger one, NaN if one is: fmaxf would pass over it.
CMI_FAST_DEVICE float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

CMI_FAST_DEVICE float widen(float x) { return x; }
CMI_FAST_DEVICE float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
CMI_FAST_DEVICE float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

CMI_FAST_DEVICE void narrow(float x, float* to) { *to = x; }
CMI_FAST_DEVICE void narrow(float x, BFloat16* to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }
CMI_FAST_DEVICE void narrow(float x, Half* to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }

// 16 bytes to shared memory, zeros unless `valid`; they are there after wait_for_copies, for others after a barrier.
CMI_FAST_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
CMI_FAST_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 matrices of 2-byte elements: lane l gives row l % 8 of matrix l / 8, 16 bytes, and gets of each matrix the
// elements (l / 4, 2 (l % 4)) and the next one in the row.
CMI_FAST_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same of the transposed matrices.
CMI_FAST_DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// sums [16, 8] += a [16, 16] b [16, 8] on a warp's tensor core. With g = lane / 4 and t = lane % 4, a lane holds
// of sums   (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1),
// of a      (g, 2t..) (g + 8, 2t..) (g, 2t + 8..) (g + 8, 2t + 8..), two columns each,
// of b      (2t.., g) (2t + 8.., g), two rows each.
CMI_FAST_DEVICE void multiply_add(BFloat16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CMI_FAST_DEVICE void multiply_add(Half, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace cmi_fast::cuda

#endif
