#include "cpu/kernels/capsule_routing.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/read_sequences.h"
#include "cpu/streaming.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(CapsuleRoutingKernels, capsule_routing)

namespace {

using OptionalTensor = std::optional<Tensor>;

template <class T>
const CapsuleRoutingKernelPair<T>& kernels() {
  return of_type<T>(CMI_FAST_KERNEL(CapsuleRoutingKernels, capsule_routing));
}

struct Arguments {
  Tensor items, maps;
  OptionalTensor bias, logits, active, lengths, offsets;
  int64_t interests, iterations;
};

// The arguments of one call, checked and contiguous, with what threads share. T is what is computed in: the parameters'
// type, and the items' unless that is a half type.
template <class T>
struct Call {
  Tensor items, maps, packed;
  OptionalTensor bias, logits, active;
  ReadSequences read;
  CapsuleRouting<T> problem;
  bool by_place;
  const CapsuleRoutingKernel<T>& kernel;

  Call(const Arguments& given, bool forward)
      : items(torch::stable::contiguous(given.items)),
        maps(torch::stable::contiguous(given.maps)),
        bias(contiguous(given.bias)),
        logits(contiguous(given.logits)),
        active(contiguous(given.active)),
        read(given.items, given.lengths, given.offsets),
        by_place(check_shapes(given, read)),
        kernel(by_place ? kernels<T>().by_place : kernels<T>().everywhere) {
    problem = {read.sequences,
               read.longest,
               {items.const_data_ptr(), element<T>(items)},
               data<T>(maps),
               maps.size(0),
               maps.size(1),
               given.interests,
               maps.size(3),
               maps.size(2),
               bias ? data<T>(*bias) : nullptr,
               logits ? data<T>(*logits) : nullptr,
               active ? data<int64_t>(*active) : nullptr,
               given.iterations,
               nullptr};
    for (int64_t b = 0; active && b < read.sequences.batch; ++b)
      STD_TORCH_CHECK(problem.active[b] >= 1 && problem.active[b] <= given.interests, "active[", b,
                      "] = ", problem.active[b], " is outside [1, ", given.interests, "]");
    if (!forward) return;  // the backward reads the maps as they are
    packed = new_tensor(kernel.packed_size(problem));
    if (packed.numel() == 0) return;  // read as they are, too
    parallel(maps.size(0), [&](int64_t place, T*) {
      kernel.pack(problem, place * maps.size(1), (place + 1) * maps.size(1), mutable_data<T>(packed));
    });
    problem.packed = data<T>(packed);
  }

  static OptionalTensor contiguous(const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : OptionalTensor();
  }

  Tensor new_tensor(int64_t size) const { return torch::stable::new_empty(items, {size}, SCALAR_TYPE<T>); }

  // Returns whether the maps differ by place.
  static bool check_shapes(const Arguments& given, const ReadSequences& read) {
    const Tensor& maps = given.maps;
    const int64_t interests = given.interests;
    STD_TORCH_CHECK(interests >= 1 && given.iterations >= 1, "interests and iterations must be at least 1");
    STD_TORCH_CHECK(maps.dim() == 4 && maps.numel() > 0 && maps.size(3) == given.items.size(-1) &&
                        (maps.size(1) == interests || (maps.size(1) == 1 && maps.size(0) == 1)),
                    "maps must be [1, 1, e, d], [1, K, e, d] or [P, K, e, d] with the items' d");
    const int64_t places = std::max(read.longest, read.sequences.capacity);  // padding gets a gradient of zero
    STD_TORCH_CHECK(maps.size(0) == 1 || places <= maps.size(0), "maps by place: expected at least ", places,
                    " places, found ", maps.size(0));
    STD_TORCH_CHECK(!given.bias || given.bias->numel() == maps.size(2), "bias must be [e]");
    STD_TORCH_CHECK(!given.logits || given.logits->numel() == read.rows * interests, "logits must be [rows, K]");
    for (const OptionalTensor& parameter : {OptionalTensor(maps), given.bias, given.logits})
      STD_TORCH_CHECK(!parameter || (parameter->scalar_type() == SCALAR_TYPE<T> && parameter->is_cpu()),
                      "maps, bias and logits must have the items' dtype, or be float32 for half types");
    STD_TORCH_CHECK(!given.active || (given.active->scalar_type() == ScalarType::Long && given.active->is_cpu() &&
                                      given.active->numel() == read.sequences.batch),
                    "active must be int64 [B] on the CPU");
    return maps.size(0) > 1;
  }

  // Calls run(part, workspace) for every part.
  template <class Run>
  void parallel(int64_t parts, const Run& run) const {
    const int64_t workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
    const int64_t stride = (kernel.workspace_size(problem) + 15) / 16 * 16;  // no false sharing
    const Tensor workspace = new_tensor(workers * stride);
    for_each_part(parts, workers, TorchThreads{},
                  [&](int64_t part, int64_t worker) { run(part, mutable_data<T>(workspace) + worker * stride); });
  }
};

template <class Run>
auto dispatch_computed(const Tensor& items, const Run& run) {
  return dispatch(items, "items", [&](auto type) { return run(Compute<decltype(type)>()); });
}

// Adds up `parts` partial sums of `size` numbers, in order, into the first.
template <class T>
void add_parts(T* sums, int64_t parts, int64_t size) {
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
}

// Cotangents of the sums before squashing, [B, K, e].
template <class T>
Tensor sum_cotangents(const Call<T>& call, const std::vector<int64_t>& boundaries, const Tensor& interests_grad_,
                      const Tensor& sums_) {
  const auto& p = call.problem;
  const int64_t size = p.sequences.batch * p.interests * p.e;
  STD_TORCH_CHECK(interests_grad_.numel() == size, "the gradient must be [B, K, e]");
  STD_TORCH_CHECK(sums_.numel() == size && sums_.scalar_type() == SCALAR_TYPE<T>, "sums must be those of the forward");
  const Tensor interests_grad = torch::stable::contiguous(interests_grad_), sums = torch::stable::contiguous(sums_);
  const Tensor result = call.new_tensor(size);
  call.parallel(boundaries.size() - 1, [&](int64_t part, T*) {
    kernels<T>().cotangents(data<T>(sums), {interests_grad.const_data_ptr(), element<T>(interests_grad)}, p.e,
                            boundaries[part] * p.interests, boundaries[part + 1] * p.interests,
                            mutable_data<T>(result));
  });
  return result;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(const Call<T>& call, const Tensor& interests_grad, const Tensor& weights_, const Tensor& sums,
                   const Tensor& pooled_, const Arguments& given, bool items_grad, bool maps_grad, bool bias_grad) {
  const auto& p = call.problem;
  STD_TORCH_CHECK(weights_.numel() == call.read.rows * p.interests && weights_.scalar_type() == SCALAR_TYPE<T>,
                  "weights must be those of the forward");
  STD_TORCH_CHECK(!bias_grad || given.bias, "a bias that is not there has no gradient");
  STD_TORCH_CHECK(call.by_place || (pooled_.numel() == p.sequences.batch * p.interests * p.d &&
                                    pooled_.scalar_type() == SCALAR_TYPE<T>),
                  "pooled must be that of the forward");
  const Tensor weights = torch::stable::contiguous(weights_), pooled = torch::stable::contiguous(pooled_);
  const std::vector<int64_t> boundaries = partition(p.sequences);
  const Tensor cotangents = sum_cotangents(call, boundaries, interests_grad, sums);
  const Tensor items = items_grad ? torch::stable::new_empty(given.items, given.items.sizes()) : call.new_tensor(0);
  const int64_t map_size = p.map_count * p.e * p.d;  // of one place
  const int64_t all = boundaries.size() - 1;
  const int64_t parts = call.by_place ? p.places : parts_with_sums(all, maps_grad ? map_size * sizeof(T) : 0);
  const Tensor maps = call.by_place && maps_grad ? torch::stable::new_empty(given.maps, given.maps.sizes())
                                                 : call.new_tensor(maps_grad ? parts * map_size : 0);
  const Tensor bias = call.new_tensor(bias_grad ? parts * p.e : 0);
  const auto run = [&](int64_t part, T* workspace) {
    const int64_t offset = call.by_place ? 0 : part;  // places find their own
    const CapsuleRoutingGradients<T> gradients{
        data<T>(weights),
        data<T>(pooled),
        data<T>(cotangents),
        {items_grad ? items.mutable_data_ptr() : nullptr, element<T>(call.items)},
        element<T>(call.items) == Element::computed && worth_streaming<T>(items),
        maps_grad ? mutable_data<T>(maps) + offset * map_size : nullptr,
        bias_grad ? mutable_data<T>(bias) + offset * p.e : nullptr};
    if (call.by_place)
      call.kernel.backward(p, part, part + 1, gradients, workspace);
    else
      call.kernel.backward(p, boundaries[part * all / parts], boundaries[(part + 1) * all / parts], gradients,
                           workspace);
  };
  call.parallel(parts, run);
  if (maps_grad && !call.by_place) add_parts(mutable_data<T>(maps), parts, map_size);
  if (bias_grad) add_parts(mutable_data<T>(bias), parts, p.e);
  const auto shaped = [&](const Tensor& sum, const Tensor& like, bool wanted) {
    if (!wanted) return call.new_tensor(0);
    const Tensor gradient = torch::stable::new_empty(like, like.sizes());
    std::copy_n(data<T>(sum), like.numel(), mutable_data<T>(gradient));
    return gradient;
  };
  const Tensor map_gradient = call.by_place && maps_grad ? maps : shaped(maps, given.maps, maps_grad);
  return {items, map_gradient, shaped(bias, bias_grad ? *given.bias : given.maps, bias_grad)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> capsule_routing(Tensor items, Tensor maps, OptionalTensor bias,
                                                           OptionalTensor logits, OptionalTensor active,
                                                           OptionalTensor lengths, OptionalTensor offsets,
                                                           int64_t interests, int64_t iterations) {
  return dispatch_computed(items, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(type);
    const Call<T> call({items, maps, bias, logits, active, lengths, offsets, interests, iterations}, true);
    const auto& p = call.problem;
    const Tensor result = torch::stable::new_empty(items, {p.sequences.batch, interests, p.e});
    const Tensor weights = torch::stable::new_empty(items, {call.read.rows, interests}, SCALAR_TYPE<T>);
    const Tensor sums = torch::stable::new_empty(items, {p.sequences.batch, interests, p.e}, SCALAR_TYPE<T>);
    const Tensor pooled =
        torch::stable::new_empty(items, {call.by_place ? 0 : p.sequences.batch, interests, p.d}, SCALAR_TYPE<T>);
    const std::vector<int64_t> boundaries = partition(p.sequences);
    const CapsuleRoutingResult<T> results{{result.mutable_data_ptr(), element<T>(result)},
                                          mutable_data<T>(weights),
                                          mutable_data<T>(sums),
                                          mutable_data<T>(pooled)};
    call.parallel(boundaries.size() - 1, [&](int64_t part, T* workspace) {
      call.kernel.forward(p, boundaries[part], boundaries[part + 1], results, workspace);
    });
    return {result, weights, sums, pooled};
  });
}

Gradients capsule_routing_backward(Tensor interests_grad, Tensor weights, Tensor sums, Tensor pooled, Tensor items,
                                   Tensor maps, OptionalTensor bias, OptionalTensor logits, OptionalTensor active,
                                   OptionalTensor lengths, OptionalTensor offsets, int64_t interests,
                                   int64_t iterations, bool items_grad, bool maps_grad, bool bias_grad) {
  return dispatch_computed(items, [&](auto type) {
    using T = decltype(type);
    const Arguments given{items, maps, bias, logits, active, lengths, offsets, interests, iterations};
    return backward(Call<T>(given, false), interests_grad, weights, sums, pooled, given, items_grad, maps_grad,
                    bias_grad);
  });
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("capsule_routing", TORCH_BOX(&capsule_routing));
  library.impl("capsule_routing_backward", TORCH_BOX(&capsule_routing_backward));
}

}  // namespace cmi_fast
