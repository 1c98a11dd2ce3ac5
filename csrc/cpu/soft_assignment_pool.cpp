#include "cpu/kernels/soft_assignment_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/checks.h"
#include "cpu/level.h"
#include "cpu/partition.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool)

namespace {

template <class T>
const SoftAssignmentPoolKernel<T>& kernel() {
  const SoftAssignmentPoolKernels& kernels = CMI_FAST_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool);
  if constexpr (std::is_same_v<T, float>)
    return kernels.float32;
  else
    return kernels.float64;
}

// The arguments of one call, checked and contiguous, with what threads share.
template <class T>
struct Call {
  const SoftAssignmentPoolKernel<T>& kernel = cmi_fast::kernel<T>();
  Tensor items, categories, index, packed;
  SoftAssignmentPool<T> problem;
  std::vector<int64_t> boundaries;
  int64_t parts, workers, workspace_stride;
  Tensor workspace;

  Call(const Tensor& items_, const Tensor& categories_, const std::optional<Tensor>& lengths,
       const std::optional<Tensor>& offsets, double temperature, const std::optional<Tensor>& temperature_tensor) {
    const bool jagged = offsets.has_value();
    STD_TORCH_CHECK(items_.dim() == (jagged ? 2 : 3), "items must be [B, L, d], or [T, d] with offsets");
    STD_TORCH_CHECK(!jagged || offsets->numel() > 0, "offsets must be [B + 1]");
    STD_TORCH_CHECK(!(jagged && lengths), "give lengths or offsets, not both");
    STD_TORCH_CHECK(categories_.dim() == 2 && categories_.size(1) == items_.size(-1) && categories_.size(1) > 0 &&
                        categories_.size(0) > 0 && categories_.scalar_type() == SCALAR_TYPE<T>,
                    "categories must be [m, d] with the items' d and dtype");
    items = torch::stable::contiguous(items_);
    categories = torch::stable::contiguous(categories_);
    const int64_t batch = jagged ? offsets->numel() - 1 : items.size(0), m = categories.size(0), d = items.size(-1);
    Sequences sequences{batch, jagged ? 0 : items.size(1), nullptr, nullptr};
    if (jagged) {
      index = contiguous_index(*offsets, "offsets", batch + 1);
      sequences.offsets = data<int64_t>(index);
    } else if (lengths) {
      index = contiguous_index(*lengths, "lengths", batch);
      sequences.lengths = data<int64_t>(index);
    }
    check_sequences(sequences, items.numel() / d);
    packed = torch::stable::new_empty(items, {kernel.packed_size(m, d)});
    kernel.pack_categories(data<T>(categories), m, d, mutable_data<T>(packed));
    problem = {sequences,      data<T>(items), m, d, T(1 / temperature_value<T>(temperature, temperature_tensor)),
               data<T>(packed)};
    boundaries = partition(sequences);
    parts = boundaries.size() - 1;
    workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
    workspace_stride = (kernel.workspace_size(m, d) + 15) / 16 * 16;  // whole cache lines: no false sharing
    workspace = torch::stable::new_empty(items, {workers * workspace_stride});
  }

  template <class Run>
  void parallel(const Run& run) const {
    parallel_for_parts(parts, workers, [&](int64_t part, int64_t worker) {
      run(part, boundaries[part], boundaries[part + 1], mutable_data<T>(workspace) + worker * workspace_stride);
    });
  }
};

template <class T>
Tensor forward(const Call<T>& call) {
  const auto& p = call.problem;
  Tensor pooled = torch::stable::new_empty(call.items, {p.sequences.batch, p.categories, p.d});
  call.parallel([&](int64_t, int64_t begin, int64_t end, T* workspace) {
    call.kernel.forward(p, begin, end, mutable_data<T>(pooled), workspace);
  });
  return pooled;
}

// More than the caches hold until somebody reads it, and rows that are whole cache lines.
bool worth_streaming(const Tensor& rows) {
  constexpr int64_t CACHED_BYTES = 4 << 20, CACHE_LINE = 64;
  const int64_t row_bytes = rows.size(-1) * rows.element_size();
  return rows.numel() * rows.element_size() > CACHED_BYTES && row_bytes % CACHE_LINE == 0 &&
         reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % CACHE_LINE == 0;
}

template <class T>
void add(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Call<T>& call, const Tensor& pooled_grad_, bool items_grad,
                                            bool categories_grad, bool temperature_grad) {
  const auto& p = call.problem;
  const int64_t size = p.categories * p.d;
  STD_TORCH_CHECK(pooled_grad_.numel() == p.sequences.batch * size && pooled_grad_.scalar_type() == SCALAR_TYPE<T>,
                  "the gradient must be [B, m, d] of the items' dtype");
  const Tensor pooled_grad = torch::stable::contiguous(pooled_grad_);
  const Tensor none = torch::stable::new_empty(call.items, {0});
  const Tensor items = items_grad ? torch::stable::empty_like(call.items) : none;
  const Tensor categories = categories_grad ? torch::stable::empty_like(call.categories) : none;
  const Tensor temperature = temperature_grad ? torch::stable::new_empty(call.items, {}) : none;
  const Tensor category_parts = torch::stable::new_empty(call.items, {categories_grad ? call.parts * size : 0});
  const Tensor temperature_parts = torch::stable::new_empty(call.items, {temperature_grad ? call.parts : 0});
  T* const category_sums = mutable_data<T>(category_parts);
  T* const temperature_sums = mutable_data<T>(temperature_parts);
  const bool stream = items_grad && worth_streaming(items);
  call.parallel([&](int64_t part, int64_t begin, int64_t end, T* workspace) {
    const SoftAssignmentPoolGradients<T> gradients{data<T>(pooled_grad), items_grad ? mutable_data<T>(items) : nullptr,
                                                   stream, categories_grad ? category_sums + part * size : nullptr,
                                                   temperature_grad ? temperature_sums + part : nullptr};
    call.kernel.backward(p, begin, end, gradients, workspace);
  });
  for (int64_t part = 1; part < call.parts; ++part) {
    if (categories_grad) add(category_sums + part * size, size, category_sums);
    if (temperature_grad) add(temperature_sums + part, 1, temperature_sums);
  }
  if (categories_grad) call.kernel.unpack_category_gradient(p, category_sums, mutable_data<T>(categories));
  if (temperature_grad) *mutable_data<T>(temperature) = *temperature_sums;
  return {items, categories, temperature};
}

template <class Run>
auto dispatch(const Tensor& items, const Run& run) {
  switch (items.scalar_type()) {
    case ScalarType::Float:
      return run(float());
    case ScalarType::Double:
      return run(double());
    default:
      STD_TORCH_CHECK(false, "items must be float32 or float64");
  }
}

}  // namespace

Tensor soft_assignment_pool(Tensor items, Tensor categories, std::optional<Tensor> lengths,
                            std::optional<Tensor> offsets, double temperature,
                            std::optional<Tensor> temperature_tensor) {
  return dispatch(items, [&](auto type) {
    return forward(Call<decltype(type)>(items, categories, lengths, offsets, temperature, temperature_tensor));
  });
}

std::tuple<Tensor, Tensor, Tensor> soft_assignment_pool_backward(Tensor pooled_grad, Tensor items, Tensor categories,
                                                                 std::optional<Tensor> lengths,
                                                                 std::optional<Tensor> offsets, double temperature,
                                                                 std::optional<Tensor> temperature_tensor,
                                                                 bool items_grad, bool categories_grad,
                                                                 bool temperature_grad) {
  return dispatch(items, [&](auto type) {
    const Call<decltype(type)> call(items, categories, lengths, offsets, temperature, temperature_tensor);
    return backward(call, pooled_grad, items_grad, categories_grad, temperature_grad);
  });
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("soft_assignment_pool", TORCH_BOX(&soft_assignment_pool));
  library.impl("soft_assignment_pool_backward", TORCH_BOX(&soft_assignment_pool_backward));
}

}  // namespace cmi_fast
