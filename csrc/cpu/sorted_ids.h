// Ids in their order, with the places that the rows read for them take in it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/kernels/sequences.h"

namespace cmi_fast {

struct SortedIds {
  std::vector<int64_t> ids;    // of all rows that count, in order
  std::vector<int64_t> place;  // of each row among them; not set for a row that does not count
};

// Radix sort by the bits that ids below `table_rows` have: linear, stable, so that sums over equal ids have one order.
inline void sort_by_id(std::vector<std::pair<int64_t, int64_t>>& id_and_row, int64_t table_rows) {
  constexpr int DIGIT = 11;
  std::vector<std::pair<int64_t, int64_t>> sorted(id_and_row.size());
  for (int shift = 0; (table_rows - 1) >> shift > 0; shift += DIGIT) {
    std::vector<int64_t> start((1 << DIGIT) + 1);
    const auto digit = [&](int64_t id) { return id >> shift & ((1 << DIGIT) - 1); };
    for (const auto& [id, row] : id_and_row) ++start[digit(id) + 1];
    for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    for (const auto& pair : id_and_row) sorted[start[digit(pair.first)]++] = pair;
    id_and_row.swap(sorted);
  }
}

// Counts the rows within sequences for which counts(row).
template <class Counts>
SortedIds sorted_ids(const Sequences& sequences, const int64_t* ids, int64_t rows, int64_t table_rows,
                     const Counts& counts) {
  std::vector<std::pair<int64_t, int64_t>> id_and_row;
  id_and_row.reserve(rows);
  for (int64_t b = 0; b < sequences.batch; ++b)
    for (int64_t row = sequences.first(b), end = row + sequences.length(b); row < end; ++row)
      if (counts(row)) id_and_row.emplace_back(ids[row], row);
  sort_by_id(id_and_row, table_rows);
  SortedIds result;
  result.ids.reserve(id_and_row.size());
  result.place.resize(rows);
  for (const auto& [id, row] : id_and_row) {
    result.place[row] = result.ids.size();
    result.ids.push_back(id);
  }
  return result;
}

}  // namespace cmi_fast
