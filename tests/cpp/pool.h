// Both poolings twice: the kernels of the current ISA level under the operators' own partition, and Eq. 1-3 item by
// item.
#pragma once

#include "checking.h"
#include "cpu/kernels/soft_assignment_pool.h"
#include "cpu/kernels/table_gradient.h"
#include "cpu/partition.h"
#include "cpu/shared_rows.h"

namespace cmi_fast::testing {

struct PoolCase {
  std::vector<int64_t> lengths;
  int64_t capacity;  // 0: jagged
  int64_t m, d;
  double temperature = 0.1;
  int64_t view_count = 0;  // 0: no views
  int64_t table_rows = 0;  // 0: items are the rows themselves, no ids
  bool stream = false;

  int64_t batch() const { return lengths.size(); }
  std::vector<int64_t> offsets() const;  // [batch + 1]
  int64_t first(int64_t b) const { return capacity ? b * capacity : offsets()[b]; }
  int64_t rows() const { return capacity ? batch() * capacity : offsets().back(); }
  int64_t item_rows() const { return table_rows ? table_rows : rows(); }
  int64_t pooled_size() const { return std::max<int64_t>(view_count, 1) * batch() * m * d; }
  std::string name() const;
};

template <class S>
struct PoolInputs {
  std::vector<S> items, categories, pooled_grad;
  std::vector<int64_t> ids;  // [rows], -1 in the padding: never read
  std::vector<char> views;   // [view_count, rows], true in the padding: no matter

  explicit PoolInputs(const PoolCase& c)
      : items(poisoned<S>(c.item_rows() * c.d)),
        categories(random_numbers<S>(c.m * c.d, 1)),
        pooled_grad(random_numbers<S>(c.pooled_size(), 2)),
        ids(c.table_rows ? c.rows() : 0, -1),
        views(c.view_count * c.rows(), 1) {
    const auto numbers = random_numbers<S>(c.item_rows() * c.d, 3);
    std::mt19937 generator(4);
    if (c.table_rows) items = numbers;
    for (int64_t b = 0; b < c.batch(); ++b)
      for (int64_t row = c.first(b); row < c.first(b) + c.lengths[b]; ++row) {
        if (c.table_rows)
          ids[row] = generator() % c.table_rows;
        else
          std::copy_n(&numbers[row * c.d], c.d, &items[row * c.d]);  // the padding stays NaN
        for (int64_t view = 0; view < c.view_count; ++view) views[view * c.rows() + row] = generator() % 2;
      }
  }

  bool in_view(const PoolCase& c, int64_t view, int64_t row) const {
    return c.view_count == 0 || views[view * c.rows() + row];
  }
};

// An empty gradient is one that is not wanted.
template <class S>
struct PoolResult {
  std::vector<S> pooled, items, categories;
  std::vector<Compute<S>> temperature;

  bool same_bits_as(const PoolResult& other) const {
    return same_bits(pooled, other.pooled) && same_bits(items, other.items) &&
           same_bits(categories, other.categories) && same_bits(temperature, other.temperature);
  }
};

template <class S>
PoolResult<S> every_gradient(const PoolCase& c) {
  return {poisoned<S>(c.pooled_size()), poisoned<S>(c.item_rows() * c.d), poisoned<S>(c.m * c.d),
          poisoned<Compute<S>>(1)};
}

template <class T>
const SoftAssignmentPoolKernel<T>& pool_kernel();  // of the current level
template <class T>
void run_table_gradient(const TableGradient<T>& gradient, int64_t begin, int64_t end);

template <class S, class Parallel>
struct PoolRun {
  using T = Compute<S>;
  const PoolCase& c;
  const PoolInputs<S>& inputs;
  const Parallel& parallel;
  int64_t workers;
  PoolResult<S> result;
  const SoftAssignmentPoolKernel<T>& kernel = pool_kernel<T>();
  std::vector<int64_t> offsets = c.offsets(), boundaries = {};
  std::vector<T> packed = poisoned<T>(kernel.packed_size(c.m, c.d));
  SoftAssignmentPool<T> problem = {};

  PoolResult<S> run() {
    kernel.pack_categories({inputs.categories.data(), STORED<S>}, c.m, c.d, packed.data());
    problem = {.sequences = {c.batch(), c.capacity, c.capacity ? c.lengths.data() : nullptr,
                             c.capacity ? nullptr : offsets.data()},
               .items = {inputs.items.data(), STORED<S>},
               .ids = c.table_rows ? inputs.ids.data() : nullptr,
               .views = c.view_count ? reinterpret_cast<const bool*>(inputs.views.data()) : nullptr,
               .view_count = std::max<int64_t>(c.view_count, 1),
               .rows = c.rows(),
               .categories = c.m,
               .d = c.d,
               .pooled = STORED<S>,
               .inverse_temperature = T(1 / c.temperature),
               .packed = packed.data()};
    boundaries = partition(problem.sequences);
    for_each_part(boundaries.size() - 1, workers, parallel, [&](int64_t part, int64_t) {
      kernel.forward(problem, boundaries[part], boundaries[part + 1], result.pooled.data(), workspace().data());
    });
    if (c.table_rows && !result.items.empty())
      backward_to_table();
    else if (c.stream)
      backward_streaming();
    else
      backward(result.items.empty() ? nullptr : result.items.data());
    return result;
  }

  // Of exactly the size that the kernel asks for; one for each part, as the workers' contents must not matter.
  std::vector<T> workspace() const { return poisoned<T>(kernel.workspace_size(c.m, c.d, problem.view_count)); }

  void backward(S* items, T* shared = nullptr, const int32_t* place = nullptr) {
    const int64_t parts = boundaries.size() - 1;
    std::vector<std::vector<T>> categories(parts), temperature(parts);
    for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
      categories[part] = poisoned<T>(result.categories.size());
      temperature[part] = poisoned<T>(result.temperature.size());
      const auto wanted = [](std::vector<T>& gradient) { return gradient.empty() ? nullptr : gradient.data(); };
      kernel.backward(problem, boundaries[part], boundaries[part + 1],
                      {.pooled = inputs.pooled_grad.data(),
                       .items = {items, STORED<S>},
                       .shared = shared,
                       .place = place,
                       .stream = c.stream,
                       .categories = wanted(categories[part]),
                       .temperature = wanted(temperature[part])},
                      workspace().data());
    });
    for (int64_t part = 1; part < parts; ++part) {
      for (size_t i = 0; i < categories[0].size(); ++i) categories[0][i] += categories[part][i];
      for (size_t i = 0; i < temperature[0].size(); ++i) temperature[0][i] += temperature[part][i];
    }
    if (!result.categories.empty())
      kernel.unpack_category_gradient(problem, categories[0].data(), result.categories.data());
    result.temperature = temperature[0];
  }

  void backward_streaming() {
    const int64_t size = result.items.size();
    const auto memory = aligned<S>(size);
    backward(memory.get());
    std::copy_n(memory.get(), size, result.items.data());
  }

  void backward_to_table() {
    const auto counts = [&](int64_t row) {
      bool any = false;
      for (int64_t view = 0; view < problem.view_count; ++view) any = any || inputs.in_view(c, view, row);
      return any;
    };
    const SharedRows shared = shared_rows(problem.sequences, inputs.ids.data(), c.rows(), c.table_rows, counts);
    const int64_t size = c.stream ? c.table_rows * c.d : 0;
    const auto rows = aligned<T>(shared.count * c.d);
    const auto table = aligned<S>(size);
    S* const out = c.stream ? table.get() : result.items.data();
    backward(out, rows.get(), shared.place.data());
    const TableGradient<T> gradient{shared.readers.data(), shared.end.data(), rows.get(), c.d,
                                    {out, STORED<S>},      c.stream};
    const int64_t parts = std::min<int64_t>(c.table_rows, 3);
    for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
      run_table_gradient(gradient, c.table_rows * part / parts, c.table_rows * (part + 1) / parts);
    });
    std::copy_n(table.get(), size, result.items.data());
  }
};

template <class S, class Parallel>
PoolResult<S> run_pool(const PoolCase& c, const PoolInputs<S>& inputs, const Parallel& parallel, int64_t workers,
                       PoolResult<S> wanted) {
  return PoolRun<S, Parallel>{c, inputs, parallel, workers, wanted}.run();
}

struct PoolExact {
  std::vector<double> pooled, items, categories, temperature;
  double steepest = 1;   // 1 / norm of the shortest row: what an error of the unit row's gradient is multiplied by
  double magnitude = 1;  // of the terms that the temperature's gradient sums, of both signs
};

template <class S>
PoolExact pool_item_by_item(const PoolCase& c, const PoolInputs<S>& inputs);

template <class S>
void check_pool(const PoolResult<S>& ours, const PoolExact& exact, const PoolCase& c, const std::string& what) {
  const double tolerance = 8 * ELEMENT<Compute<S>>.epsilon / c.temperature;  // a score's rounding: of the exponent
  const double rounded = sizeof(S) == 2 ? ELEMENT<S>.epsilon / 2 : 0;        // what is stored in a half type
  check_close(ours.pooled, exact.pooled, tolerance + rounded, what + "pooled");
  check_close(ours.items, exact.items, tolerance * exact.steepest + rounded, what + "gradient of the items");
  check_close(ours.categories, exact.categories, tolerance * exact.steepest + rounded, what + "of the categories");
  check_close(ours.temperature, exact.temperature, tolerance * exact.magnitude, what + "of the temperature");
}

}  // namespace cmi_fast::testing
