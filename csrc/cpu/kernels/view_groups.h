// A sequence's rows in the order of the views that hold them.
#pragma once

#include "cpu/kernels/soft_assignment_pool.h"

namespace cmi_fast {
namespace {

using ViewSet = uint32_t;  // bit v: in view v

constexpr int CHUNK = 256;  // rows ordered at a time, whatever the length of the sequence
constexpr int MAX_VIEWS = 8;

// Calls run(view) for every view of the set.
template <class Run>
inline void for_each_view(ViewSet views, const Run& run) {
  for (int64_t view = 0; views; ++view, views >>= 1)
    if (views & 1) run(view);
}

// Counting sort, stable.
template <class T>
inline void order_by_views(const SoftAssignmentPool<T>& p, int64_t first, int64_t count, int64_t* rows,
                           ViewSet* views) {
  ViewSet unordered[CHUNK];
  int64_t start[(1 << MAX_VIEWS) + 1] = {};
  for (int64_t i = 0; i < count; ++i) {
    ViewSet set = 0;
    for (int64_t view = 0; view < p.view_count; ++view) set |= ViewSet(p.views[view * p.rows + first + i]) << view;
    unordered[i] = set;
    ++start[set + 1];
  }
  for (int64_t set = 0; set < 1 << p.view_count; ++set) start[set + 1] += start[set];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t to = start[unordered[i]]++;
    rows[to] = first + i;
    views[to] = unordered[i];
  }
}

// Calls run(rows, views, count) for the rows of sequence b in chunks, each ordered by the views that hold a row.
template <class T, class Run>
inline void for_each_chunk(const SoftAssignmentPool<T>& p, int64_t b, const Run& run) {
  int64_t rows[CHUNK];
  ViewSet views[CHUNK];
  const int64_t first = p.sequences.first(b), length = p.sequences.length(b);
  for (int64_t start = 0; start < length; start += CHUNK) {
    const int64_t count = length - start < CHUNK ? length - start : CHUNK;
    if (p.views) {
      order_by_views(p, first + start, count, rows, views);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = first + start + i;
        views[i] = 1;
      }
    }
    run(rows, views, count);
  }
}

// Calls run(views, begin, end) for the groups of a chunk's rows: those that the same views hold, perhaps none.
template <class Run>
inline void for_each_group(const ViewSet* views, int64_t begin, int64_t end, const Run& run) {
  for (int64_t to; begin < end; begin = to) {
    for (to = begin + 1; to < end && views[to] == views[begin];) ++to;
    run(views[begin], begin, to);
  }
}

}  // namespace
}  // namespace cmi_fast
