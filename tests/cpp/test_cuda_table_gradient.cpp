// The CUDA kernels that sum the gradients of a table's rows, run by the emulator.
#include <numeric>

#include "cuda/table_gradient_passes.h"
#include "emulated.h"

namespace cmi_fast::testing {
namespace {

// Lengths of runs that end before, at and behind the edges of windows, and are several windows long.
const std::vector<std::vector<int>> RUNS{
    {}, {1}, {32}, {33}, {31, 1, 1}, {64, 64}, {31, 2, 70, 25, 3}, {1, 100, 1, 1, 200, 5}, {5, 27, 32, 32, 8}};

template <class T>
void test_type() {
  for (const std::vector<int>& runs : RUNS)
    for (const int without : {0, 1, 40}) {
      const int d = 37, rows = 2 * int(runs.size()) + 1;
      std::vector<int> keys;
      for (size_t run = 0; run < runs.size(); ++run) keys.insert(keys.end(), runs[run], int(2 * run + 1));
      const int with = int(keys.size());
      keys.insert(keys.end(), without, cuda::NO_ROW);
      const int count = int(keys.size());
      std::vector<int64_t> positions(count);
      std::iota(positions.rbegin(), positions.rend(), 0);
      auto gathered = random_numbers<float>(int64_t(count) * d, 5);
      for (int i = with; i < count; ++i) std::fill_n(gathered.begin() + positions[i] * d, d, NAN);
      auto edges = poisoned<float>(cuda::TableGradient<T>::edges_size(count, d));
      std::vector<T> table(int64_t(rows) * d);
      std::vector<double> exact(table.size());
      for (int i = 0; i < with; ++i)
        for (int k = 0; k < d; ++k) exact[keys[i] * d + k] += gathered[positions[i] * d + k];
      cuda::TableGradient<T>{{keys.data(), positions.data(), count}, gathered.data(), d, edges.data(), table.data()}
          .run(Emulated{false});
      const double rounded = sizeof(T) == 2 ? ELEMENT<T>.epsilon / 2 : 0;
      check_close(table, exact, 16 * ELEMENT<float>.epsilon + rounded,
                  "CUDA " + ELEMENT<T>.name + " gradient of a table, " + std::to_string(runs.size()) + " runs");
    }
}

}  // namespace

void test_cuda_table_gradient() {
  test_type<float>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
