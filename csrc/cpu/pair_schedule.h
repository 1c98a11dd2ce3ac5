// A round-robin tournament: every pair of blocks meets once, and in a round no block plays twice. A task therefore owns
// both of its blocks and adds into their sums without locks; a block meets the others in a fixed order, so the bits do
// not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace cmi_fast {

// Calls visit(a, b, worker) for all a <= b < blocks (blocks even, or 1). parallel(workers, run) calls run(worker) for
// every worker, at the same time or one after another.
//
// Tasks are taken in the order of the rounds, and one starts when both its blocks have played the round before. There
// is no barrier between rounds, as it would wait for a thread that the system has put aside.
template <class Parallel, class Visit>
void for_each_pair(int64_t blocks, int64_t workers, const Parallel& parallel, const Visit& visit) {
  const int64_t circle = blocks - 1;  // from round 1 on the last block stays, the others turn
  const int64_t tasks = blocks + circle * (blocks / 2);
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> played(blocks);  // rounds
  const auto wait = [&](int64_t block, int64_t round) {
    while (played[block].load(std::memory_order_acquire) < round) std::this_thread::yield();
  };
  parallel(workers, [&](int64_t worker) {
    for (int64_t task = next++; task < tasks; task = next++) {
      int64_t a = task, b = task, round = 0;  // round 0: every block with itself
      if (task >= blocks) {
        const int64_t turn = (task - blocks) / (blocks / 2), seat = (task - blocks) % (blocks / 2);
        a = seat == 0 ? circle : (turn + seat) % circle;
        b = (turn - seat + circle) % circle;
        round = turn + 1;
      }
      wait(a, round);
      wait(b, round);
      visit(a < b ? a : b, a < b ? b : a, worker);
      played[a].store(round + 1, std::memory_order_release);
      if (b != a) played[b].store(round + 1, std::memory_order_release);
    }
  });
}

}  // namespace cmi_fast
