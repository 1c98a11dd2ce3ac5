// Both poolings on CUDA: checks, memory, launches.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <type_traits>
#include <vector>

#include "cuda/launch.h"
#include "cuda/soft_assignment_pool_passes.h"
#include "cuda/table_gradient_passes.h"

namespace cmi_fast::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Ids [B, L] or [T] and views [V, B, L] or [V, T] are given or not; items are [B, L, d] or [T, d], or the table.
struct Arguments {
  Tensor items, categories;
  OptionalTensor ids, views, lengths, offsets;
  double temperature;
  OptionalTensor temperature_tensor;
};

// Contiguous, if of this type and on the GPU of `like`; `expected` says so.
Tensor checked(const Tensor& tensor, ScalarType type, const Tensor& like, const char* expected) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == type && tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      expected, ", on the GPU of the categories");
  return torch::stable::contiguous(tensor);
}

template <class T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* memory_or_null(const Tensor& tensor) {
  return tensor.numel() > 0 ? mutable_data<T>(tensor) : nullptr;
}

// The arguments of one call, checked and contiguous, with the memory that its passes write first.
template <class S, class C>
struct Call {
  Tensor items, categories, units;
  OptionalTensor ids, views, lengths, offsets;
  PoolPasses<S, C> passes;

  explicit Call(const Arguments& given) : categories(torch::stable::contiguous(given.categories)) {
    const Tensor& positions = given.ids ? *given.ids : given.items;
    const int width = given.ids ? 0 : 1;  // dimensions beyond those of the sequences
    STD_TORCH_CHECK(categories.dim() == 2 && categories.numel() > 0 && categories.size(0) <= MOST_CATEGORIES &&
                        categories.size(1) < int64_t(1) << 20,
                    "categories must be [m, d], with at most ", MOST_CATEGORIES, " and fewer than 2^20 dimensions");
    STD_TORCH_CHECK(positions.dim() == (given.offsets ? 1 : 2) + width && !(given.offsets && given.lengths),
                    "expected [B, L] and perhaps lengths, or [T] with offsets; items have d beside these");
    STD_TORCH_CHECK((!given.ids || given.items.dim() == 2) && given.items.size(-1) == categories.size(1),
                    "items and table must have the categories' d");
    STD_TORCH_CHECK(!given.offsets || given.offsets->numel() > 0, "offsets must be [B + 1]");
    items = checked(given.items, given.items.scalar_type(), categories, "expected items");
    if (given.ids) ids = checked(*given.ids, ScalarType::Long, categories, "ids must be int64");
    if (given.lengths) lengths = checked(*given.lengths, ScalarType::Long, categories, "lengths must be int64");
    if (given.offsets) offsets = checked(*given.offsets, ScalarType::Long, categories, "offsets must be int64");
    if (given.views) views = checked(*given.views, ScalarType::Bool, categories, "views must be bool");
    const int64_t d = categories.size(1), count = given.ids ? given.ids->numel() : items.numel() / d;
    const int64_t batch = offsets ? offsets->numel() - 1 : positions.size(0), chunks = (d + DEPTH - 1) / DEPTH;
    STD_TORCH_CHECK(batch < int64_t(1) << 30 && count < int64_t(1) << 30 && count * chunks < int64_t(1) << 32,
                    "expected fewer than 2^30 sequences and positions, found ", batch, " and ", count);
    STD_TORCH_CHECK(!given.ids || items.size(0) < NO_ROW, "table: expected fewer rows, found ", items.size(0));
    STD_TORCH_CHECK(!lengths || lengths->numel() == batch, "lengths must be [B]");
    STD_TORCH_CHECK(!views || (views->size(0) >= 1 && views->size(0) <= 8 && views->numel() == views->size(0) * count),
                    "views must be [V, B, L] or [V, T], V <= 8");
    units = floats({categories.size(0), chunks * DEPTH});
    passes = {.x = {.rows = data<S>(items),
                    .ids = data_or_null<int64_t>(ids),
                    .lengths = data_or_null<int64_t>(lengths),
                    .offsets = data_or_null<int64_t>(offsets),
                    .views = data_or_null<bool>(views),
                    .categories = nullptr,
                    .row_count = items.size(0),
                    .batch = int(batch),
                    .capacity = offsets ? 0 : int(positions.size(1)),
                    .positions = int(count),
                    .view_count = views ? int(views->size(0)) : 1,
                    .m = int(categories.size(0)),
                    .d = int(d),
                    .aligned = false,
                    .temperature = float(given.temperature),
                    .temperature_pointer = device_temperature(given.temperature_tensor, categories)},
              .categories = data<C>(categories),
              .units = mutable_data<float>(units)};
  }

  // Uninitialised.
  Tensor floats(std::vector<int64_t> sizes) const {
    return torch::stable::new_empty(categories, sizes, ScalarType::Float);
  }
};

// Calls run(S(), C(), items) for the types of items and categories. Under autocast a table is float32 beside a half
// type; one of the other half type is rare enough to be widened first.
template <class Run>
auto dispatch_call(const Arguments& given, const Run& run) {
  const torch::stable::accelerator::DeviceGuard guard(given.categories.get_device_index());
  return dispatch(given.categories, "categories", [&](auto c) {
    using C = decltype(c);
    if (given.items.scalar_type() == given.categories.scalar_type()) return run(Call<C, C>(given));
    Arguments widened = given;
    if (given.items.scalar_type() != ScalarType::Float)
      widened.items = torch::stable::to(given.items, ScalarType::Float);
    return run(Call<float, C>(widened));
  });
}

template <class S, class C>
Tensor forward(const Call<S, C>& call) {
  const auto& x = call.passes.x;
  std::vector<int64_t> shape{x.batch, x.m, x.d};
  if (call.views) shape.insert(shape.begin(), x.view_count);
  const Tensor pooled = torch::stable::new_empty(call.categories, shape);
  call.passes.forward(mutable_data<C>(pooled), Launch(call.categories));
  return pooled;
}

// Gradients of positions go to `items`, or to `gathered` and `keys`, if these are not empty; returns those of
// categories and temperature.
template <class S, class C>
std::pair<Tensor, Tensor> backward(const Call<S, C>& call, const Tensor& pooled_grad_, const Tensor& items,
                                   const Tensor& gathered, const Tensor& keys, bool categories_grad,
                                   bool temperature_grad) {
  const auto& x = call.passes.x;
  STD_TORCH_CHECK(pooled_grad_.numel() == int64_t(x.interests()) * x.batch * x.d,
                  "the gradient must be as the interests");
  const Tensor pooled_grad = checked(pooled_grad_, call.categories.scalar_type(), call.categories,
                                     "the gradient must be of the interests' dtype");
  const Tensor none = call.floats({0}), temperature = temperature_grad ? call.floats({}) : none;
  const Tensor categories = categories_grad ? torch::stable::empty_like(call.categories) : none;
  const Tensor category_parts = categories_grad ? call.floats({call.passes.category_parts(), x.m, x.d}) : none;
  const Tensor temperature_parts = temperature_grad ? call.floats({call.passes.temperature_parts()}) : none;
  const Tensor category_sums = categories_grad ? call.floats({x.m, x.d}) : none;
  call.passes.backward(data<C>(pooled_grad),
                       {.items = memory_or_null<S>(items),
                        .gathered = memory_or_null<float>(gathered),
                        .keys = memory_or_null<int>(keys),
                        .categories = memory_or_null<float>(category_parts),
                        .temperature = memory_or_null<float>(temperature_parts)},
                       memory_or_null<float>(category_sums), memory_or_null<C>(categories),
                       memory_or_null<float>(temperature), Launch(call.categories));
  return {categories, temperature};
}

// Sorted, and where each was; stable.
std::pair<Tensor, Tensor> sorted(const Tensor& keys) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Tensor zeros_like(const Tensor& tensor) {
  Tensor zeros = torch::stable::empty_like(tensor);
  return torch::stable::zero_(zeros);
}

// The table's gradient, of those of the positions.
template <class S, class C>
Tensor sum_into_table(const Call<S, C>& call, const Tensor& gathered, const Tensor& keys) {
  const auto& x = call.passes.x;
  const Tensor table = zeros_like(call.items);
  const auto [rows, positions] = sorted(keys);
  const Tensor edges = call.floats({TableGradient<S>::edges_size(x.positions, x.d)});
  TableGradient<S>{{data<int>(rows), data<int64_t>(positions), x.positions},
                   data<float>(gathered),
                   x.d,
                   mutable_data<float>(edges),
                   mutable_data<S>(table)}
      .run(Launch(call.categories));
  return table;
}

Tensor soft_assignment_pool(Tensor items, Tensor categories, OptionalTensor lengths, OptionalTensor offsets,
                            OptionalTensor views, double temperature, OptionalTensor temperature_tensor) {
  return dispatch_call({items, categories, {}, views, lengths, offsets, temperature, temperature_tensor},
                       [](const auto& call) { return forward(call); });
}

Gradients soft_assignment_pool_backward(Tensor pooled_grad, Tensor items, Tensor categories, OptionalTensor lengths,
                                        OptionalTensor offsets, OptionalTensor views, double temperature,
                                        OptionalTensor temperature_tensor, bool items_grad, bool categories_grad,
                                        bool temperature_grad) {
  return dispatch_call({items, categories, {}, views, lengths, offsets, temperature, temperature_tensor},
                       [&](const auto& call) -> Gradients {
                         const Tensor none = call.floats({0}), gradient = items_grad ? zeros_like(call.items) : none;
                         const auto [c, t] =
                             backward(call, pooled_grad, gradient, none, none, categories_grad, temperature_grad);
                         return {gradient, c, t};
                       });
}

Tensor item_soft_assignment_pool(Tensor ids, Tensor table, Tensor categories, OptionalTensor lengths,
                                 OptionalTensor offsets, OptionalTensor views, double temperature,
                                 OptionalTensor temperature_tensor) {
  return dispatch_call({table, categories, ids, views, lengths, offsets, temperature, temperature_tensor},
                       [](const auto& call) { return forward(call); });
}

Gradients item_soft_assignment_pool_backward(Tensor pooled_grad, Tensor ids, Tensor table, Tensor categories,
                                             OptionalTensor lengths, OptionalTensor offsets, OptionalTensor views,
                                             double temperature, OptionalTensor temperature_tensor, bool table_grad,
                                             bool categories_grad, bool temperature_grad) {
  return dispatch_call(
      {table, categories, ids, views, lengths, offsets, temperature, temperature_tensor},
      [&](const auto& call) -> Gradients {
        const Tensor none = call.floats({0});
        if (!table_grad) {
          const auto [c, t] = backward(call, pooled_grad, none, none, none, categories_grad, temperature_grad);
          return {none, c, t};
        }
        const int64_t positions = call.passes.x.positions;
        const Tensor gathered = call.floats({positions, call.passes.x.d});
        const Tensor keys = torch::stable::fill_(
            torch::stable::new_empty(call.categories, {positions}, ScalarType::Int), double(NO_ROW));
        const auto [c, t] = backward(call, pooled_grad, none, gathered, keys, categories_grad, temperature_grad);
        const Tensor gradient = sum_into_table(call, gathered, keys);
        return {
            table.scalar_type() == gradient.scalar_type() ? gradient : torch::stable::to(gradient, table.scalar_type()),
            c, t};
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CUDA, library) {
  library.impl("soft_assignment_pool", TORCH_BOX(&soft_assignment_pool));
  library.impl("soft_assignment_pool_backward", TORCH_BOX(&soft_assignment_pool_backward));
  library.impl("item_soft_assignment_pool", TORCH_BOX(&item_soft_assignment_pool));
  library.impl("item_soft_assignment_pool_backward", TORCH_BOX(&item_soft_assignment_pool_backward));
}

}  // namespace cmi_fast::cuda
