// Every pair of blocks once, a block with one worker at a time, partners in an order that the threads do not change.
#include <atomic>
#include <numeric>

#include "checking.h"
#include "cpu/nt_xent_passes.h"
#include "cpu/pair_schedule.h"

namespace cmi_fast::testing {
namespace {

// How many use a thing. Relaxed, so that it orders nothing that the schedule itself should have ordered.
class Users {
 public:
  bool enter() { return count_.fetch_add(1, std::memory_order_relaxed) == 0; }
  void leave() { count_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  std::atomic<int> count_{0};
};

// The partners of every block, in the order they came. The plain vectors are written by many threads, a block's by one
// at a time: ThreadSanitizer sees whether the schedule hands them on properly.
template <class Parallel>
std::vector<std::vector<int64_t>> meetings(int64_t blocks, int64_t workers, const Parallel& parallel) {
  const std::string what = std::to_string(blocks) + " blocks, " + std::to_string(workers) + " workers: ";
  std::vector<std::vector<int64_t>> partners(blocks);
  std::vector<Users> players(blocks), workspaces(workers);
  for_each_pair(blocks, workers, parallel, [&](int64_t a, int64_t b, int64_t worker) {
    check(0 <= a && a <= b && b < blocks && 0 <= worker && worker < workers, what + "indices");
    const bool alone = players[a].enter() && (a == b || players[b].enter()) && workspaces[worker].enter();
    check(alone, what + "a block or a workspace has two users");
    partners[a].push_back(b);
    if (a != b) partners[b].push_back(a);
    players[a].leave();
    if (a != b) players[b].leave();
    workspaces[worker].leave();
  });
  return partners;
}

void test_meetings(int64_t blocks) {
  const auto expected = meetings(blocks, 1, OneAfterAnother{});
  for (int64_t block = 0; block < blocks; ++block) {
    std::vector<int64_t> everybody(blocks), met = expected[block];
    std::iota(everybody.begin(), everybody.end(), 0);
    std::sort(met.begin(), met.end());
    check(met == everybody, "block " + std::to_string(block) + " of " + std::to_string(blocks) + " meets each once");
  }
  check(meetings(blocks, 3, OneAfterAnother{}) == expected, "workers one after another");
  for (const int64_t workers : {2, 3, 8, 64})
    check(meetings(blocks, workers, Threads{}) == expected, "same order on " + std::to_string(workers) + " threads");
}

// What for_each_pair and the buffers of the operator rely on.
void test_schedule_of_the_loss() {
  for (int64_t tiles = 1; tiles <= 300; ++tiles)
    for (const int64_t threads : {1, 2, 3, 8, 64, 200}) {
      const NtXentSchedule s(tiles, threads);
      check(s.blocks == NtXentSchedule(tiles, 1).blocks, "the blocks do not depend on the threads");
      check(s.blocks == 1 ? tiles == 1 : s.blocks % 2 == 0 && s.blocks <= 128, "blocks are even, or 1");
      check(1 <= s.workers && s.workers <= threads && s.workers <= s.blocks, "as many workers as there is work for");
    }
}

}  // namespace

void test_pair_schedule() {
  for (const int64_t blocks : {1, 2, 4, 6, 8, 14, 32, 64, 128}) test_meetings(blocks);
  test_schedule_of_the_loss();
}

}  // namespace cmi_fast::testing
