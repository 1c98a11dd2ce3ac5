// The most multiply-adds this CPU does at this ISA level: independent chains in registers, no memory. Benchmarks show
// their share of it.
#include "cpu/kernels/fma_ceiling.h"

#include "cpu/kernels/product.h"

namespace cmi_fast {
namespace {

constexpr int CHAINS = 12;  // the units' latency times their number, or more
using Sum = Vector<float, WIDE>;

template <class T, class Step>
float run(int64_t iterations, T left, T right, const Step& step) {
  Sum sum[CHAINS];
  for (int i = 0; i < CHAINS; ++i) sum[i] = Sum{} + float(i);
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : "+x"(left), "+x"(right));  // keeps the loop a loop
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sum[i] = step(left, right, sum[i]);
  }
  Sum all{};  // a chain that nobody reads would be optimised away
  for (int i = 0; i < CHAINS; ++i) all += sum[i];
  return all[0];
}

float run_float32(int64_t iterations) {
  return run(iterations, Sum{} + 0.999f, Sum{} + 1e-3f,
             [](Sum factor, Sum term, Sum sum) { return sum * factor + term; });
}

constexpr FmaCeiling FLOAT32{2 * CHAINS * VectorOf<float, WIDE>::LANES, run_float32};

#if defined(__AVX512BF16__)
float run_bfloat16(int64_t iterations) {
  const BFloat16Pairs ones = BFloat16Pairs{} + 0x3f803f80u;  // 1.0 twice
  return run(iterations, ones, ones,
             [](BFloat16Pairs left, BFloat16Pairs right, Sum sum) { return multiply_add(left, right, sum); });
}

constexpr FmaCeiling BFLOAT16{2 * FLOAT32.flops_per_iteration, run_bfloat16};
#else
constexpr FmaCeiling BFLOAT16{};
#endif

}  // namespace

namespace CMI_FAST_LEVEL {
extern const FmaCeilings fma_ceiling;
const FmaCeilings fma_ceiling{FLOAT32, BFLOAT16};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
