#include "cpu/kernels/fma_ceiling.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "cpu/level.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(FmaCeilings, fma_ceiling)

namespace {

// Does `iterations` on every thread; returns the floating-point operations of all of them together: 0 for bfloat16
// where the ISA level has no dot products of it.
int64_t fma_ceiling_flops(int64_t iterations, bool bfloat16) {
  const FmaCeilings& kernels = CMI_FAST_KERNEL(FmaCeilings, fma_ceiling);
  const FmaCeiling& kernel = bfloat16 ? kernels.bfloat16 : kernels.float32;
  if (!kernel.run) return 0;
  const int64_t threads = torch::stable::get_num_threads();
  std::atomic<float> sink{0};  // a result nobody reads would be optimised away
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) sink = kernel.run(iterations);
  });
  return threads * iterations * kernel.flops_per_iteration;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CompositeExplicitAutograd, library) {
  library.impl("fma_ceiling_flops", TORCH_BOX(&fma_ceiling_flops));
}

}  // namespace cmi_fast
