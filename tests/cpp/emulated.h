// A launcher that runs kernels in the emulator.
#pragma once

#include "checking.h"
#include "cuda/machine.h"

namespace cmi_fast::testing {

// Runs a kernel on this CPU thread, shared memory an allocation of its exact size, full of NaN.
struct Emulated {
  bool descending;

  template <class Kernel>
  void operator()(cuda::Grid grid, const Kernel& kernel) const {
    // One block's threads run before the next block's: they may share the allocation.
    std::vector<float> shared;
    cuda::run_grid(grid, cuda::THREADS, descending, [&](cuda::Place place) {
      if (place.thread == (descending ? cuda::THREADS - 1 : 0)) shared = poisoned<float>(Kernel::SHARED / 4);
      kernel(place, reinterpret_cast<char*>(shared.data()));
    });
  }
};

}  // namespace cmi_fast::testing
