// The GRU twice: the kernels of the current ISA level under the operator's own blocks, and the equations item by item.
#pragma once

#include "checking.h"
#include "cpu/gru_blocks.h"
#include "cpu/kernels/gru.h"
#include "cpu/partition.h"
#include "cpu/shared_rows.h"
#include "pool.h"

namespace cmi_fast::testing {

struct GruCase {
  std::vector<int64_t> lengths;
  int64_t capacity;  // 0: jagged
  int64_t d, hidden;
  bool bias = true;
  bool stream = false;
  int64_t table_rows = 0;  // 0: items are the rows themselves, no ids
  bool normalize = false;

  int64_t batch() const { return lengths.size(); }
  std::vector<int64_t> offsets() const;  // [batch + 1]
  int64_t first(int64_t b) const { return capacity ? b * capacity : offsets()[b]; }
  int64_t rows() const { return capacity ? batch() * capacity : offsets().back(); }
  int64_t item_rows() const { return table_rows ? table_rows : rows(); }
  std::string name() const;
};

// weight_ih, weight_hh, bias_ih and bias_hh; empty: no such bias, or a gradient that is not wanted.
template <class S>
struct GruTensors {
  std::vector<S> items, parameters[4];
};

template <class S>
struct GruInputs : GruTensors<S> {
  std::vector<S> last_grad;
  std::vector<int64_t> ids;  // [rows], -1 in the padding: never read

  explicit GruInputs(const GruCase& c)
      : last_grad(random_numbers<S>(c.batch() * c.hidden, 1)), ids(c.table_rows ? c.rows() : 0, -1) {
    this->items = poisoned<S>(c.item_rows() * c.d);  // the padding stays NaN
    const auto numbers = random_numbers<S>(c.item_rows() * c.d, 2);
    std::mt19937 generator(7);
    for (int64_t b = 0; b < c.batch(); ++b)
      for (int64_t row = c.first(b); row < c.first(b) + c.lengths[b]; ++row) {
        if (c.table_rows)
          ids[row] = generator() % c.table_rows;
        else
          std::copy_n(numbers.data() + row * c.d, c.d, this->items.data() + row * c.d);
      }
    if (c.table_rows) this->items = numbers;
    const int64_t gates = 3 * c.hidden, sizes[] = {gates * c.d, gates * c.hidden, gates, gates};
    for (int i = 0; i < (c.bias ? 4 : 2); ++i) {
      this->parameters[i] = random_numbers<S>(sizes[i], 3 + i);
      for (S& x : this->parameters[i]) x = from_double<S>(to_double(x) / std::sqrt(c.hidden));
    }
  }
};

template <class S>
struct GruResult : GruTensors<S> {
  std::vector<S> last;

  bool same_bits_as(const GruResult& other) const {
    bool same = same_bits(last, other.last) && same_bits(this->items, other.items);
    for (int i = 0; i < 4; ++i) same = same && same_bits(this->parameters[i], other.parameters[i]);
    return same;
  }
};

template <class S>
GruResult<S> every_gradient(const GruInputs<S>& inputs) {
  GruResult<S> result;
  result.last = poisoned<S>(inputs.last_grad.size());
  result.items = poisoned<S>(inputs.items.size());
  for (int i = 0; i < 4; ++i) result.parameters[i] = poisoned<S>(inputs.parameters[i].size());
  return result;
}

template <class T>
const GruKernel<T>& gru_kernel();  // of the current level

template <class S, class Parallel>
struct GruRun {
  using T = Compute<S>;
  const GruCase& c;
  const GruInputs<S>& inputs;
  const Parallel& parallel;
  int64_t workers;
  GruResult<S> result;
  const GruKernel<T>& kernel = gru_kernel<T>();
  std::vector<int64_t> offsets = c.offsets();
  Sequences sequences{c.batch(), c.capacity, c.capacity ? c.lengths.data() : nullptr,
                      c.capacity ? nullptr : offsets.data()};
  GruBlocks blocks{sequences};
  std::vector<T> packed = poisoned<T>(kernel.packed_size(c.d, c.hidden));
  Gru<T> problem = {};

  static ConstRows read(const std::vector<S>& rows) { return {rows.empty() ? nullptr : rows.data(), STORED<S>}; }
  static MutableRows write(std::vector<S>& rows) { return {rows.empty() ? nullptr : rows.data(), STORED<S>}; }

  // Runs each part in a workspace of exactly the size that the kernel asks for.
  template <class Run>
  void each_part(int64_t parts, const Run& run) {
    for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
      auto workspace = poisoned<T>(kernel.workspace_size(c.d, c.hidden));
      run(part, blocks.boundary(part, parts), blocks.boundary(part + 1, parts), workspace.data());
    });
  }

  GruResult<S> run() {
    const auto& given = inputs.parameters;
    kernel.pack_weights({read(given[0]), read(given[1]), read(given[2]), read(given[3])}, c.d, c.hidden, packed.data());
    problem = {.sequences = sequences,
               .order = blocks.order.data(),
               .block = blocks.block,
               .first_saved = blocks.first_saved.data(),
               .items = read(inputs.items),
               .ids = c.table_rows ? inputs.ids.data() : nullptr,
               .normalize = c.normalize,
               .d = c.d,
               .hidden = c.hidden,
               .packed = packed.data()};
    forward(nullptr);
    const std::vector<S> last = result.last;
    auto saved = poisoned<T>(c.rows() * kernel.saved_size(c.hidden));
    forward(saved.data());
    check(same_bits(last, result.last), c.name() + "last states, whether or not something is saved");
    if (c.stream)
      backward_streaming(saved.data());
    else
      backward(saved.data(), write(result.items));
    return result;
  }

  void forward(T* saved) {
    each_part(blocks.count(), [&](int64_t, int64_t begin, int64_t end, T* workspace) {
      kernel.forward(problem, begin, end, write(result.last), saved, workspace);
    });
  }

  void backward(const T* saved, MutableRows items) {
    auto& wanted = result.parameters;
    const bool any = !(wanted[0].empty() && wanted[1].empty() && wanted[2].empty() && wanted[3].empty());
    const int64_t size = kernel.gradient_size(c.d, c.hidden), parts = blocks.gradient_parts(size * sizeof(T));
    std::vector<std::vector<T>> sums(parts);
    const bool of_table = c.table_rows && items.data;
    SharedRows shared;
    if (of_table)
      shared = shared_rows(sequences, inputs.ids.data(), c.rows(), c.table_rows, [](int64_t) { return true; });
    const auto shared_gradients = aligned<T>(shared.count * c.d);
    each_part(parts, [&](int64_t part, int64_t begin, int64_t end, T* workspace) {
      sums[part] = poisoned<T>(any ? size : 0);
      kernel.backward(problem, begin, end,
                      {.last = read(inputs.last_grad),
                       .saved = saved,
                       .items = items,
                       .shared = shared_gradients.get(),
                       .place = of_table ? shared.place.data() : nullptr,
                       .stream = c.stream,
                       .parameters = any ? sums[part].data() : nullptr},
                      workspace);
    });
    if (of_table)
      run_table_gradient<T>({shared.readers.data(), shared.end.data(), shared_gradients.get(), c.d, items, c.stream}, 0,
                            c.table_rows);
    if (!any) return;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < size; ++i) sums[0][i] += sums[part][i];
    kernel.unpack_gradients(sums[0].data(), c.d, c.hidden,
                            {write(wanted[0]), write(wanted[1]), write(wanted[2]), write(wanted[3])});
  }

  void backward_streaming(const T* saved) {
    const int64_t size = result.items.size();
    const auto memory = aligned<S>(size);
    backward(saved, {memory.get(), STORED<S>});
    std::copy_n(memory.get(), size, result.items.data());
  }
};

// `result` has the sizes of what is wanted.
template <class S, class Parallel>
GruResult<S> run_gru(const GruCase& c, const GruInputs<S>& inputs, const Parallel& parallel, int64_t workers,
                     const GruResult<S>& result) {
  return GruRun<S, Parallel>{c, inputs, parallel, workers, result}.run();
}

struct GruExact : GruTensors<double> {
  std::vector<double> last;
};

template <class S>
GruExact gru_item_by_item(const GruCase& c, const GruInputs<S>& inputs);

template <class S>
void check_gru(const GruResult<S>& ours, const GruExact& exact, const std::string& what) {
  const double tolerance = 16 * ELEMENT<Compute<S>>.epsilon;  // the roundings of a step go through the next ones
  const double rounded = sizeof(S) == 2 ? ELEMENT<S>.epsilon / 2 : 0;  // what is stored in a half type
  const char* names[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
  check_close(ours.last, exact.last, tolerance + rounded, what + "last states");
  check_close(ours.items, exact.items, tolerance + rounded, what + "gradient of the items");
  for (int i = 0; i < 4; ++i)
    check_close(ours.parameters[i], exact.parameters[i], tolerance + rounded, what + "gradient of " + names[i]);
}

}  // namespace cmi_fast::testing
