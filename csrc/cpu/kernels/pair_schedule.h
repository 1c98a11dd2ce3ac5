// A round-robin tournament: every pair of blocks meets once, and in a round no block plays twice. A task therefore owns
// both of its blocks and adds into their sums without locks; the rounds' order fixes the order of all sums, so the bits
// do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace cmi_fast {

// Calls visit(a, b, worker) for all a <= b < blocks (blocks even, or 1). parallel_for(count, run) calls run(task,
// worker) for task < count in any order, and returns when all are done.
template <class ParallelFor, class Visit>
void for_each_pair(int64_t blocks, const ParallelFor& parallel_for, const Visit& visit) {
  parallel_for(blocks, [&](int64_t block, int64_t worker) { visit(block, block, worker); });
  const int64_t circle = blocks - 1;  // the last block stays, the others turn
  for (int64_t round = 0; round < circle; ++round) {
    parallel_for(blocks / 2, [&](int64_t task, int64_t worker) {
      const int64_t a = task == 0 ? circle : (round + task) % circle;
      const int64_t b = (round - task + circle) % circle;
      visit(a < b ? a : b, a < b ? b : a, worker);
    });
  }
}

}  // namespace cmi_fast
