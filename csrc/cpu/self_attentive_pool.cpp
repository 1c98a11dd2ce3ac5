#include "cpu/kernels/self_attentive_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/read_sequences.h"
#include "cpu/streaming.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(SelfAttentivePoolKernels, self_attentive_pool)

namespace {

using OptionalTensor = std::optional<Tensor>;

struct Arguments {
  Tensor items, weight, queries;
  OptionalTensor bias, positions, lengths, offsets;
};

// The arguments of one call, checked and contiguous, with what threads share. T is what is computed in: the parameters'
// type, and the items' unless that is a half type.
template <class T>
struct Call {
  const SelfAttentivePoolKernel<T>& kernel = of_type<T>(CMI_FAST_KERNEL(SelfAttentivePoolKernels, self_attentive_pool));
  Tensor items, weight, queries, packed;
  OptionalTensor bias, positions;
  ReadSequences read;
  SelfAttentivePool<T> problem;
  std::vector<int64_t> boundaries;

  explicit Call(const Arguments& given)
      : items(torch::stable::contiguous(given.items)),
        weight(torch::stable::contiguous(given.weight)),
        queries(torch::stable::contiguous(given.queries)),
        bias(contiguous(given.bias)),
        positions(contiguous(given.positions)),
        read(given.items, given.lengths, given.offsets) {
    check_parameters(given);
    const SelfAttentivePoolSizes sizes{given.queries.size(0), given.weight.size(0), given.weight.size(1),
                                       positions ? positions->size(0) : 0, read.longest};
    STD_TORCH_CHECK(!positions || read.longest <= sizes.places, "no sequence may be longer than ", sizes.places);
    packed = new_tensor(kernel.packed_size(sizes));
    kernel.pack(parameters(), sizes, mutable_data<T>(packed));
    problem = {read.sequences, {items.const_data_ptr(), element<T>(items)}, sizes, data<T>(packed)};
    boundaries = partition(read.sequences);
  }

  Tensor new_tensor(int64_t size) const { return torch::stable::new_empty(items, {size}, SCALAR_TYPE<T>); }

  static OptionalTensor contiguous(const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : OptionalTensor();
  }

  SelfAttentivePoolParameters<const T> parameters() const {
    return {data<T>(weight), data<T>(queries), bias ? data<T>(*bias) : nullptr,
            positions ? data<T>(*positions) : nullptr};
  }

  static void check_parameters(const Arguments& given) {
    const Tensor &weight = given.weight, &queries = given.queries;
    STD_TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.size(1) == given.items.size(-1),
                    "weight must be [h, d] with the items' d");
    STD_TORCH_CHECK(queries.dim() == 2 && queries.numel() > 0 && queries.size(1) == weight.size(0),
                    "queries must be [K, h]");
    STD_TORCH_CHECK(!given.bias || given.bias->numel() == weight.size(0), "bias must be [h]");
    STD_TORCH_CHECK(!given.positions || (given.positions->dim() == 2 && given.positions->numel() > 0 &&
                                         given.positions->size(1) == weight.size(1)),
                    "positions must be [P, d] with the items' d");
    for (const OptionalTensor& parameter :
         {OptionalTensor(weight), OptionalTensor(queries), given.bias, given.positions})
      STD_TORCH_CHECK(!parameter || (parameter->scalar_type() == SCALAR_TYPE<T> && parameter->is_cpu()),
                      "parameters must have the items' dtype, or be float32 for half types");
  }

  // Calls run(part, begin, end, workspace) for all sequences in `parts` parts.
  template <class Run>
  void parallel(int64_t parts, const Run& run) const {
    const int64_t workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
    const int64_t stride = (kernel.workspace_size(problem.sizes) + 15) / 16 * 16;  // no false sharing
    const Tensor workspace = new_tensor(workers * stride);
    const int64_t all = boundaries.size() - 1;
    for_each_part(parts, workers, TorchThreads{}, [&](int64_t part, int64_t worker) {
      run(part, boundaries[part * all / parts], boundaries[(part + 1) * all / parts],
          mutable_data<T>(workspace) + worker * stride);
    });
  }
};

template <class Run>
auto dispatch_computed(const Tensor& items, const Run& run) {
  return dispatch(items, "items", [&](auto type) { return run(Compute<decltype(type)>()); });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

}  // namespace

std::tuple<Tensor, Tensor> self_attentive_pool(Tensor items, Tensor weight, Tensor queries, OptionalTensor bias,
                                               OptionalTensor positions, OptionalTensor lengths,
                                               OptionalTensor offsets) {
  return dispatch_computed(items, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    const Call<T> call({items, weight, queries, bias, positions, lengths, offsets});
    const auto& p = call.problem;
    const Tensor pooled = torch::stable::new_empty(items, {p.sequences.batch, p.sizes.interests, p.sizes.d});
    const Tensor attention = torch::stable::new_empty(items, {call.read.rows, p.sizes.interests}, SCALAR_TYPE<T>);
    call.parallel(call.boundaries.size() - 1, [&](int64_t, int64_t begin, int64_t end, T* workspace) {
      call.kernel.forward(p, begin, end, {pooled.mutable_data_ptr(), element<T>(pooled)}, mutable_data<T>(attention),
                          workspace);
    });
    return {pooled, attention};
  });
}

Gradients self_attentive_pool_backward(Tensor pooled_grad_, Tensor attention_, Tensor items, Tensor weight,
                                       Tensor queries, OptionalTensor bias, OptionalTensor positions,
                                       OptionalTensor lengths, OptionalTensor offsets, bool items_grad,
                                       bool weight_grad, bool queries_grad, bool bias_grad, bool positions_grad) {
  return dispatch_computed(items, [&](auto type) -> Gradients {
    using T = decltype(type);
    const Call<T> call({items, weight, queries, bias, positions, lengths, offsets});
    const auto& p = call.problem;
    STD_TORCH_CHECK(pooled_grad_.numel() == p.sequences.batch * p.sizes.interests * p.sizes.d,
                    "the gradient must be [B, K, d]");
    STD_TORCH_CHECK(
        attention_.numel() == call.read.rows * p.sizes.interests && attention_.scalar_type() == SCALAR_TYPE<T>,
        "attention must be that of the forward");
    const Tensor pooled_grad = torch::stable::contiguous(pooled_grad_);
    const Tensor attention = torch::stable::contiguous(attention_);
    const auto result = [&](const Tensor& like, bool wanted) {
      return wanted ? torch::stable::new_empty(like, like.sizes()) : call.new_tensor(0);
    };
    const Tensor item_gradient = result(items, items_grad);
    STD_TORCH_CHECK((bias || !bias_grad) && (positions || !positions_grad),
                    "a parameter that is not there has no gradient");
    const Tensor gradients[] = {result(weight, weight_grad), result(queries, queries_grad),
                                result(bias_grad ? *bias : weight, bias_grad),
                                result(positions_grad ? *positions : weight, positions_grad)};
    const bool parameters = weight_grad || queries_grad || bias_grad || positions_grad;
    const int64_t size = call.kernel.gradient_size(p.sizes);
    const int64_t parts = parts_with_sums(call.boundaries.size() - 1, parameters ? size * sizeof(T) : 0);
    const Tensor partial = call.new_tensor(parameters ? parts * size : 0);
    T* const sums = mutable_data<T>(partial);
    call.parallel(parts, [&](int64_t part, int64_t begin, int64_t end, T* workspace) {
      call.kernel.backward(p, begin, end,
                           {{pooled_grad.const_data_ptr(), element<T>(pooled_grad)},
                            data<T>(attention),
                            {items_grad ? item_gradient.mutable_data_ptr() : nullptr, element<T>(items)},
                            element<T>(items) == Element::computed && worth_streaming<T>(item_gradient),
                            parameters ? sums + part * size : nullptr},
                           workspace);
    });
    if (parameters) {
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
      const auto to = [](const Tensor& gradient) { return gradient.numel() ? mutable_data<T>(gradient) : nullptr; };
      call.kernel.unpack_gradients(sums, p.sizes,
                                   {to(gradients[0]), to(gradients[1]), to(gradients[2]), to(gradients[3])});
    }
    return {item_gradient, gradients[0], gradients[1], gradients[2], gradients[3]};
  });
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("self_attentive_pool", TORCH_BOX(&self_attentive_pool));
  library.impl("self_attentive_pool_backward", TORCH_BOX(&self_attentive_pool_backward));
}

}  // namespace cmi_fast
