// Both poolings: soft_assignment_pool of item vectors, item_soft_assignment_pool of the rows of a table.
#include "cpu/kernels/soft_assignment_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/checks.h"
#include "cpu/huge_pages.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/streaming.h"
#include "cpu/table_items.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool)

namespace {

using OptionalTensor = std::optional<Tensor>;

// Ids [B, L] or [T] and views [V, B, L] or [V, T] are given or not; items are [B, L, d] or [T, d], or the table.
struct Arguments {
  Tensor items, categories;
  OptionalTensor ids, views, lengths, offsets;
  double temperature;
  OptionalTensor temperature_tensor;
};

// The arguments of one call, checked and contiguous, with what threads share. T is what is computed in.
template <class T>
struct Call {
  const SoftAssignmentPoolKernel<T>& kernel =
      of_type<T>(CMI_FAST_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool));
  Tensor items, categories, index, ids, views, packed;
  bool has_views;  // though there may be no rows, and no pointer to any
  SoftAssignmentPool<T> problem;
  std::vector<int64_t> boundaries;
  int64_t parts, workers, workspace_stride;
  Tensor workspace;

  explicit Call(const Arguments& given) {
    check_shapes(given);
    items = torch::stable::contiguous(given.items);
    categories = torch::stable::contiguous(given.categories);
    const int64_t m = categories.size(0), d = categories.size(1);
    const Sequences sequences = read_sequences(given);
    const int64_t rows = given.ids ? given.ids->numel() : items.numel() / d;
    check_sequences(sequences, rows);
    problem = {sequences,
               {items.const_data_ptr(), element<T>(items)},
               nullptr,
               nullptr,
               1,
               rows,
               m,
               d,
               element<T>(categories),
               T(1 / temperature_value<T>(given.temperature, given.temperature_tensor)),
               nullptr};
    if (given.ids) {
      ids = contiguous_ids(*given.ids, sequences, items.size(0));
      problem.ids = data<int64_t>(ids);
    }
    has_views = given.views.has_value();
    if (has_views) read_views(*given.views);
    packed = new_tensor(kernel.packed_size(m, d));
    kernel.pack_categories({categories.const_data_ptr(), problem.pooled}, m, d, mutable_data<T>(packed));
    problem.packed = data<T>(packed);
    boundaries = partition(sequences);
    parts = boundaries.size() - 1;
    workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
    workspace_stride = (kernel.workspace_size(m, d, problem.view_count) + 15) / 16 * 16;  // no false sharing
    workspace = new_tensor(workers * workspace_stride);
  }

  Tensor new_tensor(int64_t size) const { return torch::stable::new_empty(items, {size}, SCALAR_TYPE<T>); }

  static void check_shapes(const Arguments& given) {
    const Tensor& rows = given.ids ? *given.ids : given.items;
    const int64_t width = given.ids ? 0 : 1;  // dimensions beyond those of the sequences
    STD_TORCH_CHECK(
        rows.dim() == (given.offsets ? 1 : 2) + width,
        given.ids ? "ids must be [B, L], or [T] with offsets" : "items must be [B, L, d], or [T, d] with offsets");
    STD_TORCH_CHECK(!given.offsets || given.offsets->numel() > 0, "offsets must be [B + 1]");
    STD_TORCH_CHECK(!(given.offsets && given.lengths), "give lengths or offsets, not both");
    STD_TORCH_CHECK(!given.ids || given.items.dim() == 2, "table must be [V, d]");
    STD_TORCH_CHECK(
        given.categories.dim() == 2 && given.categories.size(1) == given.items.size(-1) && given.categories.numel() > 0,
        "categories must be [m, d] with the items' d");
  }

  Sequences read_sequences(const Arguments& given) {
    const Tensor& rows = given.ids ? *given.ids : given.items;
    const int64_t batch = given.offsets ? given.offsets->numel() - 1 : rows.size(0);
    Sequences sequences{batch, given.offsets ? 0 : rows.size(1), nullptr, nullptr};
    if (given.offsets) {
      index = contiguous_index(*given.offsets, "offsets", batch + 1);
      sequences.offsets = data<int64_t>(index);
    } else if (given.lengths) {
      index = contiguous_index(*given.lengths, "lengths", batch);
      sequences.lengths = data<int64_t>(index);
    }
    return sequences;
  }

  void read_views(const Tensor& given) {
    STD_TORCH_CHECK(given.scalar_type() == ScalarType::Bool && given.is_cpu() && given.dim() > 1 &&
                        given.size(0) >= 1 && given.size(0) <= 8 && given.numel() == given.size(0) * problem.rows,
                    "views must be bool [V, B, L] or [V, T] on the CPU, V <= 8");
    views = torch::stable::contiguous(given);
    problem.views = data<bool>(views);
    problem.view_count = views.size(0);
  }

  bool in_a_view(int64_t row) const {
    bool any = !problem.views;
    for (int64_t view = 0; problem.views && view < problem.view_count; ++view)
      any = any || problem.views[view * problem.rows + row];
    return any;
  }

  std::vector<int64_t> pooled_shape() const {
    std::vector<int64_t> shape{problem.sequences.batch, problem.categories, problem.d};
    if (has_views) shape.insert(shape.begin(), problem.view_count);
    return shape;
  }

  template <class Run>
  void parallel(const Run& run) const {
    for_each_part(parts, workers, TorchThreads{}, [&](int64_t part, int64_t worker) {
      run(part, boundaries[part], boundaries[part + 1], mutable_data<T>(workspace) + worker * workspace_stride);
    });
  }
};

template <class T>
Tensor forward(const Call<T>& call) {
  Tensor pooled = torch::stable::new_empty(call.categories, call.pooled_shape());
  call.parallel([&](int64_t, int64_t begin, int64_t end, T* workspace) {
    call.kernel.forward(call.problem, begin, end, pooled.mutable_data_ptr(), workspace);
  });
  return pooled;
}

template <class T>
void add(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// Where the gradients of the items go.
template <class T>
struct ItemGradients {
  Tensor items;  // or of the table; empty where not wanted
  T* shared = nullptr;
  const int32_t* place = nullptr;
};

// Fills the gradients of the items and returns those of categories and temperature; empty where not wanted.
template <class T>
std::pair<Tensor, Tensor> backward(const Call<T>& call, const Tensor& pooled_grad_, const ItemGradients<T>& to,
                                   bool categories_grad, bool temperature_grad) {
  const auto& p = call.problem;
  const int64_t size = p.categories * p.d;
  STD_TORCH_CHECK(pooled_grad_.numel() == p.view_count * p.sequences.batch * size &&
                      pooled_grad_.scalar_type() == call.categories.scalar_type(),
                  "the gradient must be [B, m, d] or [V, B, m, d], of the interests' dtype");
  const Tensor pooled_grad = torch::stable::contiguous(pooled_grad_);
  const Tensor categories = categories_grad ? torch::stable::empty_like(call.categories) : call.new_tensor(0);
  const Tensor temperature = call.new_tensor(temperature_grad);
  const Tensor category_parts = call.new_tensor(categories_grad ? call.parts * size : 0);
  const Tensor temperature_parts = call.new_tensor(temperature_grad ? call.parts : 0);
  T* const category_sums = mutable_data<T>(category_parts);
  T* const temperature_sums = mutable_data<T>(temperature_parts);
  const MutableRows item_rows{to.items.numel() > 0 ? to.items.mutable_data_ptr() : nullptr, element<T>(to.items)};
  const bool stream = worth_streaming<T>(to.items);
  call.parallel([&](int64_t part, int64_t begin, int64_t end, T* workspace) {
    const SoftAssignmentPoolGradients<T> gradients{pooled_grad.const_data_ptr(),
                                                   item_rows,
                                                   to.shared,
                                                   to.place,
                                                   stream,
                                                   categories_grad ? category_sums + part * size : nullptr,
                                                   temperature_grad ? temperature_sums + part : nullptr};
    call.kernel.backward(p, begin, end, gradients, workspace);
  });
  for (int64_t part = 1; part < call.parts; ++part) {
    if (categories_grad) add(category_sums + part * size, size, category_sums);
    if (temperature_grad) add(temperature_sums + part, 1, temperature_sums);
  }
  if (categories_grad) call.kernel.unpack_category_gradient(p, category_sums, categories.mutable_data_ptr());
  if (temperature_grad) *mutable_data<T>(temperature) = *temperature_sums;
  return {categories, temperature_grad ? torch::stable::reshape(temperature, {}) : temperature};
}

// Calls run(T()) for the type T that these items are computed in.
template <class Run>
auto dispatch_computed(const Tensor& items, const char* name, const Run& run) {
  return dispatch(items, name, [&](auto type) { return run(Compute<decltype(type)>()); });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

}  // namespace

Tensor soft_assignment_pool(Tensor items, Tensor categories, OptionalTensor lengths, OptionalTensor offsets,
                            OptionalTensor views, double temperature, OptionalTensor temperature_tensor) {
  return dispatch_computed(items, "items", [&](auto type) {
    using T = decltype(type);
    return forward(Call<T>({items, categories, {}, views, lengths, offsets, temperature, temperature_tensor}));
  });
}

Gradients soft_assignment_pool_backward(Tensor pooled_grad, Tensor items, Tensor categories, OptionalTensor lengths,
                                        OptionalTensor offsets, OptionalTensor views, double temperature,
                                        OptionalTensor temperature_tensor, bool items_grad, bool categories_grad,
                                        bool temperature_grad) {
  return dispatch_computed(items, "items", [&](auto type) -> Gradients {
    using T = decltype(type);
    const Call<T> call({items, categories, {}, views, lengths, offsets, temperature, temperature_tensor});
    const Tensor gradient = items_grad ? torch::stable::empty_like(call.items) : call.new_tensor(0);
    prefer_huge_pages<T>(gradient);
    const auto [c, t] = backward(call, pooled_grad, ItemGradients<T>{gradient}, categories_grad, temperature_grad);
    return {gradient, c, t};
  });
}

Tensor item_soft_assignment_pool(Tensor ids, Tensor table, Tensor categories, OptionalTensor lengths,
                                 OptionalTensor offsets, OptionalTensor views, double temperature,
                                 OptionalTensor temperature_tensor) {
  return dispatch_computed(table, "table", [&](auto type) {
    using T = decltype(type);
    return forward(Call<T>({table, categories, ids, views, lengths, offsets, temperature, temperature_tensor}));
  });
}

Gradients item_soft_assignment_pool_backward(Tensor pooled_grad, Tensor ids, Tensor table, Tensor categories,
                                             OptionalTensor lengths, OptionalTensor offsets, OptionalTensor views,
                                             double temperature, OptionalTensor temperature_tensor, bool table_grad,
                                             bool categories_grad, bool temperature_grad) {
  return dispatch_computed(table, "table", [&](auto type) -> Gradients {
    using T = decltype(type);
    const Call<T> call({table, categories, ids, views, lengths, offsets, temperature, temperature_tensor});
    const auto& p = call.problem;
    if (!table_grad) {
      const Tensor none = call.new_tensor(0);
      const auto [c, t] = backward(call, pooled_grad, ItemGradients<T>{none}, categories_grad, temperature_grad);
      return {none, c, t};
    }
    const SharedRows shared =
        shared_rows(p.sequences, p.ids, p.rows, table.size(0), [&](int64_t row) { return call.in_a_view(row); });
    const Tensor rows = call.new_tensor(shared.count * p.d), gradient = torch::stable::empty_like(call.items);
    prefer_huge_pages<T>(rows);
    prefer_huge_pages<T>(gradient);
    const ItemGradients<T> to{gradient, mutable_data<T>(rows), shared.place.data()};
    const auto [c, t] = backward(call, pooled_grad, to, categories_grad, temperature_grad);
    sum_into_table(data<T>(rows), shared, gradient);
    return {gradient, c, t};
  });
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("soft_assignment_pool", TORCH_BOX(&soft_assignment_pool));
  library.impl("soft_assignment_pool_backward", TORCH_BOX(&soft_assignment_pool_backward));
  library.impl("item_soft_assignment_pool", TORCH_BOX(&item_soft_assignment_pool));
  library.impl("item_soft_assignment_pool_backward", TORCH_BOX(&item_soft_assignment_pool_backward));
}

}  // namespace cmi_fast
