// The most multiply-adds this CPU does at this ISA level: independent chains in registers, no memory. Benchmarks show
// their share of it.
#include "cpu/kernels/fma_ceiling.h"

#include "cpu/kernels/vector.h"

namespace cmi_fast {
namespace {

constexpr int CHAINS = 10;  // latency 4 or 5 times two units
using V = Vector<float, WIDE>;

float run(int64_t iterations) {
  V sum[CHAINS];
  for (int i = 0; i < CHAINS; ++i) sum[i] = V{} + float(i);
  V factor = V{} + 0.999f, term = V{} + 1e-3f;
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : "+x"(factor), "+x"(term));  // keeps the loop a loop
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sum[i] = sum[i] * factor + term;
  }
  V total{};
  for (int i = 0; i < CHAINS; ++i) total += sum[i];
  return total[0];
}

}  // namespace

namespace CMI_FAST_LEVEL {
extern const FmaCeiling fma_ceiling;
const FmaCeiling fma_ceiling{2 * CHAINS * VectorOf<float, WIDE>::LANES, run};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
