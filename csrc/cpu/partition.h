// Work split into parts of about equal size: the same parts whatever the number of threads, so sums over parts have
// the same bits on 1 and on 64 threads. Torch-free: `parallel(workers, run)` calls run(worker) for every worker, at the
// same time or one after another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/kernels/sequences.h"

namespace cmi_fast {

// Boundaries of the parts: part i is the sequences boundaries[i] .. boundaries[i + 1].
inline std::vector<int64_t> partition(const Sequences& sequences) {
  constexpr int64_t MAX_PARTS = 64;
  constexpr int64_t MIN_ROWS = 512;     // some 20 microseconds of work: about what starting a thread costs
  constexpr int64_t SEQUENCE_ROWS = 4;  // what a sequence costs beside its rows
  int64_t total = 0;
  for (int64_t b = 0; b < sequences.batch; ++b) total += sequences.length(b) + SEQUENCE_ROWS;
  const int64_t parts = std::clamp<int64_t>(total / MIN_ROWS, 1, MAX_PARTS);
  std::vector<int64_t> boundaries{0};
  int64_t done = 0;
  for (int64_t b = 0; b < sequences.batch; ++b) {
    done += sequences.length(b) + SEQUENCE_ROWS;
    if (done * parts >= total * int64_t(boundaries.size()) && b + 1 < sequences.batch) boundaries.push_back(b + 1);
  }
  boundaries.push_back(sequences.batch);
  return boundaries;
}

// Calls run(part, worker) for every part. A worker runs one part after another, so it can own a workspace; it takes the
// next one that nobody has taken, so a slow core holds up nobody. Which worker ran a part does not show in the result.
template <class Parallel, class Run>
void for_each_part(int64_t parts, int64_t workers, const Parallel& parallel, const Run& run) {
  std::atomic<int64_t> next{0};
  parallel(workers, [&](int64_t worker) {
    for (int64_t part = next++; part < parts; part = next++) run(part, worker);
  });
}

}  // namespace cmi_fast
