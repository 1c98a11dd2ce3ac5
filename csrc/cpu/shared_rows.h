// Which rows of a table several items read, and the places of these items' gradients before they are summed.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/sequences.h"
#include "cpu/kernels/table_gradient.h"

namespace cmi_fast {

struct SharedRows {
  std::vector<int32_t> readers;  // [V]: how many items read a row
  std::vector<int32_t> end;      // [V]: where the places of a row with several readers end
  std::vector<int32_t> place;    // of each item, or NOT_SHARED; not set for an item that does not count
  int64_t count = 0;             // of places
};

// Counting sort of the items within sequences for which counts(row), by their ids: stable, so that sums have one order.
template <class Counts>
SharedRows shared_rows(const Sequences& sequences, const int64_t* ids, int64_t rows, int64_t table_rows,
                       const Counts& counts) {
  const auto for_each_row = [&](const auto& run) {
    for (int64_t b = 0; b < sequences.batch; ++b)
      for (int64_t row = sequences.first(b), end = row + sequences.length(b); row < end; ++row)
        if (counts(row)) run(row);
  };
  SharedRows shared{std::vector<int32_t>(table_rows), std::vector<int32_t>(table_rows), std::vector<int32_t>(rows)};
  for_each_row([&](int64_t row) { ++shared.readers[ids[row]]; });
  for (int64_t id = 0; id < table_rows; ++id) {
    shared.end[id] = shared.count;  // so far where they start
    if (shared.readers[id] > 1) shared.count += shared.readers[id];
  }
  for_each_row([&](int64_t row) {
    const int64_t id = ids[row];
    shared.place[row] = shared.readers[id] > 1 ? shared.end[id]++ : NOT_SHARED;
  });
  return shared;
}

}  // namespace cmi_fast
