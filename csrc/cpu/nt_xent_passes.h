// The passes of nt_xent_loss and how workers share them. Torch-free: the operator runs them on torch's threads and
// memory, the test program (tests/cpp) on its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/kernels/half.h"
#include "cpu/kernels/nt_xent_loss.h"
#include "cpu/pair_schedule.h"
#include "cpu/partition.h"

namespace cmi_fast {

// Tiles are cut into blocks, whose number must not depend on the threads: sums run over blocks.
struct NtXentSchedule {
  int64_t tiles = 0, blocks = 0, workers = 0;

  NtXentSchedule() = default;
  NtXentSchedule(int64_t tiles, int64_t threads) : tiles(tiles) {
    // Even, or 1. Half as many threads find work. Beyond 32, eight tiles each: two such blocks stay in L2 while all
    // their tiles meet.
    blocks = std::min<int64_t>(tiles, std::clamp<int64_t>(tiles / 8, 32, 128));
    blocks = blocks == 1 ? 1 : (blocks + 1) / 2 * 2;
    // A pair of tiles takes a few microseconds; a thread is worth waking for a good many.
    workers = std::clamp<int64_t>(tiles * tiles / 32, 1, std::min(threads, blocks));
  }
};

template <class T, class Parallel>
struct NtXentPasses {
  using C = Compute<T>;
  const NtXentLossKernel<T>& kernel;
  const NtXentLoss<T>& problem;
  NtXentSchedule schedule;
  C* workspace;  // of the kernel's size for each worker
  int64_t workspace_size;
  Parallel parallel;  // as in partition.h

  void forward(C* losses, C* log_sum) const {
    pack();
    pairs(kernel.add_sums);
    ranges(rows(),
           [&](int64_t, int64_t begin, int64_t end) { kernel.finish_losses(problem, begin, end, losses, log_sum); });
  }

  // Returns the gradient of the temperature; first and second are null where not wanted.
  double backward(const C* losses_grad, const C* log_sum, T* first, T* second) const {
    pack();
    ranges(rows(), [&](int64_t, int64_t begin, int64_t end) {
      kernel.start_gradient(problem, begin, end, losses_grad, log_sum);
    });
    pairs(kernel.add_gradient);
    std::vector<double> temperature(schedule.blocks);
    ranges(rows(), [&](int64_t part, int64_t begin, int64_t end) {
      temperature[part] = kernel.finish_gradient(problem, begin, end, first, second);
    });
    return std::accumulate(temperature.begin(), temperature.end(), 0.0);
  }

 private:
  int64_t rows() const { return 2 * problem.pairs; }

  void pack() const {
    ranges(schedule.tiles, [&](int64_t, int64_t begin, int64_t end) { kernel.pack(problem, begin, end); });
  }

  // run(part, begin, end) for ranges that cover 0 .. count, in parallel.
  template <class Run>
  void ranges(int64_t count, const Run& run) const {
    const int64_t parts = schedule.blocks;
    for_each_part(parts, schedule.workers, parallel,
                  [&](int64_t part, int64_t) { run(part, count * part / parts, count * (part + 1) / parts); });
  }

  // run(problem, a_begin, a_end, b_begin, b_end, workspace) for all pairs of blocks of tiles.
  template <class Run>
  void pairs(const Run& run) const {
    const auto boundary = [&](int64_t block) { return schedule.tiles * block / schedule.blocks; };
    for_each_pair(schedule.blocks, schedule.workers, parallel, [&](int64_t a, int64_t b, int64_t worker) {
      run(problem, boundary(a), boundary(a + 1), boundary(b), boundary(b + 1), workspace + worker * workspace_size);
    });
  }
};

}  // namespace cmi_fast
