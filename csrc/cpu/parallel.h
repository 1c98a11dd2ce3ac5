#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace cmi_fast {

// Torch's threads for the schedules of partition.h and pair_schedule.h: calls run(worker) for every worker.
struct TorchThreads {
  template <class Run>
  void operator()(int64_t workers, const Run& run) const {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) run(worker);
    });
  }
};

}  // namespace cmi_fast
