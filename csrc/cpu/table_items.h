// Items that are rows of a table: their ids, and the sum of their gradients in the table's.
#pragma once

#include <algorithm>

#include "cpu/checks.h"
#include "cpu/kernels/table_gradient.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/shared_rows.h"
#include "cpu/streaming.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(TableGradientKernels, table_gradient)

// Those within sequences are rows of the table: checked here because a compiled graph has no Python checks of values.
inline Tensor contiguous_ids(const Tensor& given, const Sequences& sequences, int64_t table_rows) {
  STD_TORCH_CHECK(given.scalar_type() == ScalarType::Long && given.is_cpu(), "ids must be int64 on the CPU");
  STD_TORCH_CHECK(given.numel() < (int64_t(1) << 31), "ids: expected fewer than 2^31, found ", given.numel());
  const Tensor ids = torch::stable::contiguous(given);
  const int64_t* const id = data<int64_t>(ids);
  for (int64_t b = 0; b < sequences.batch; ++b)
    for (int64_t row = sequences.first(b), end = row + sequences.length(b); row < end; ++row)
      STD_TORCH_CHECK(id[row] >= 0 && id[row] < table_rows, "ids: expected a value in [0, ", table_rows, "), found ",
                      id[row], " in sequence ", b);
  return ids;
}

// The table's gradient, where items with a row of their own have already written theirs, of what the others wrote to
// `rows`.
template <class T>
void sum_into_table(const T* rows, const SharedRows& shared, const Tensor& table) {
  const TableGradient<T> gradient{
      shared.readers.data(),    shared.end.data(), rows, table.size(1), {table.mutable_data_ptr(), element<T>(table)},
      worth_streaming<T>(table)};
  const auto run = of_type<T>(CMI_FAST_KERNEL(TableGradientKernels, table_gradient));
  constexpr int64_t PART = 1024;  // rows of the table
  const int64_t count = table.size(0), parts = (count + PART - 1) / PART;
  const int64_t workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
  for_each_part(parts, workers, TorchThreads{},
                [&](int64_t part, int64_t) { run(gradient, part * PART, std::min(count, (part + 1) * PART)); });
}

}  // namespace cmi_fast
