// interest_softmax_loss on CUDA: checks, memory, launches.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <type_traits>

#include "cuda/interest_softmax_loss_passes.h"
#include "cuda/launch.h"

namespace cmi_fast::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The arguments of the schema, as they come.
struct Arguments {
  Tensor interests, candidates, targets;
  OptionalTensor general, bias, exclude, ids;
  double temperature;
  OptionalTensor temperature_tensor;
  std::string reduction;
};

// Contiguous, if of this type and number of elements, and on the GPU of `like`.
Tensor checked(const Tensor& tensor, ScalarType type, int64_t size, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.numel() == size && tensor.is_cuda() &&
                      tensor.get_device_index() == like.get_device_index(),
                  name, ": expected another dtype, size or device beside these interests");
  return torch::stable::contiguous(tensor);
}

template <class T>
T* memory_or_null(const Tensor& tensor) {
  return tensor.numel() > 0 ? mutable_data<T>(tensor) : nullptr;
}

// The arguments of one call, checked and contiguous.
template <class T>
struct Call {
  Tensor interests, candidates, targets;
  OptionalTensor general, bias, exclude, ids;
  std::string reduction;
  InterestSoftmaxPasses<T> passes;

  explicit Call(const Arguments& given)
      : interests(torch::stable::contiguous(given.interests)), reduction(given.reduction) {
    STD_TORCH_CHECK(interests.dim() == 3 && interests.numel() > 0 && interests.size(1) <= MOST_INTERESTS,
                    "interests must be [B, m, d], with at most ", MOST_INTERESTS, " interests a user");
    STD_TORCH_CHECK(given.candidates.dim() == 2 && given.candidates.numel() > 0, "candidates must be [C, d]");
    const int64_t users = interests.size(0), m = interests.size(1), d = interests.size(2);
    const int64_t count = given.candidates.size(0);
    STD_TORCH_CHECK(users < int64_t(1) << 24 && count < int64_t(1) << 30 && d < int64_t(1) << 20,
                    "expected fewer than 2^24 users, 2^30 candidates and 2^20 dimensions");
    STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", "reduction: ", reduction);
    const ScalarType type = interests.scalar_type();
    const auto optional = [&](const OptionalTensor& tensor, ScalarType of, int64_t size, const char* name) {
      return tensor ? OptionalTensor(checked(*tensor, of, size, interests, name)) : OptionalTensor();
    };
    candidates = checked(given.candidates, type, count * d, interests, "candidates");
    targets = checked(given.targets, ScalarType::Long, users, interests, "targets");
    general = optional(given.general, type, users * d, "general");
    bias = optional(given.bias, type, count, "candidate_bias");
    exclude = optional(given.exclude, ScalarType::Bool, users * count, "exclude");
    ids = optional(given.ids, ScalarType::Long, count, "candidate_ids");
    passes = {.x = {.candidates = {},
                    .interests = {},
                    .general = {},
                    .bias = bias ? data<T>(*bias) : nullptr,
                    .exclude = exclude ? data<bool>(*exclude) : nullptr,
                    .ids = ids ? data<int64_t>(*ids) : nullptr,
                    .targets = data<int64_t>(targets),
                    .log_sums = nullptr,
                    .weights = nullptr,
                    .users = int(users),
                    .m = int(m),
                    .count = int(count),
                    .d = int(d),
                    .groups = groups_for(int(m)),
                    .temperature = float(given.temperature),
                    .temperature_pointer = device_temperature(given.temperature_tensor, interests)},
              .interests = data<T>(interests),
              .candidates = data<T>(candidates),
              .general = general ? data<T>(*general) : nullptr};
  }

  // Uninitialised.
  Tensor floats(std::initializer_list<int64_t> sizes) const {
    return torch::stable::new_empty(interests, sizes, ScalarType::Float);
  }
  Tensor panel() const { return torch::stable::new_empty(interests, {passes.panel_size()}); }
  // What the losses' sum is multiplied with.
  float factor() const { return reduction == "mean" ? 1 / float(passes.x.users) : 1; }
};

template <class Run>
auto dispatch_call(const Arguments& given, const Run& run) {
  const torch::stable::accelerator::DeviceGuard guard(given.interests.get_device_index());
  return dispatch(given.interests, "interests", [&](auto type) { return run(Call<decltype(type)>(given)); });
}

template <class T>
std::tuple<Tensor, Tensor> forward(const Call<T>& call) {
  const auto& p = call.passes;
  const Launch launch(call.interests);
  const Tensor panel = call.panel(), log_sums = call.floats({p.log_sums_size()});
  const Tensor losses = call.floats({p.x.users}), saved = call.floats({2, p.x.users});
  p.forward(mutable_data<T>(panel), mutable_data<float>(log_sums), mutable_data<float>(losses),
            mutable_data<float>(saved), launch);
  if (call.reduction == "none") return {losses, saved};
  const Tensor loss = call.floats({});
  launch(Grid{1}, Total{data<float>(losses), p.x.users, call.factor(), mutable_data<float>(loss)});
  return {loss, saved};
}

template <class T>
Gradients backward(const Call<T>& call, const Tensor& loss_grad_, const Tensor& saved_, bool interests_grad,
                   bool candidates_grad, bool general_grad, bool bias_grad, bool temperature_grad) {
  const auto& p = call.passes;
  const bool each = call.reduction == "none";
  const Tensor loss_grad = checked(loss_grad_, ScalarType::Float, each ? p.x.users : 1, call.interests, "loss_grad");
  const Tensor saved = checked(saved_, ScalarType::Float, 2 * int64_t(p.x.users), call.interests, "saved");
  const auto gradient = [&](bool wanted, const Tensor& of) {
    return wanted ? torch::stable::empty_like(of) : call.floats({0});
  };
  const Tensor interests = gradient(interests_grad, call.interests);
  const Tensor candidates = gradient(candidates_grad, call.candidates);
  const Tensor general = gradient(general_grad && call.general, call.general.value_or(call.interests));
  const Tensor bias = gradient(bias_grad && call.bias, call.bias.value_or(call.interests));
  const Tensor temperature = temperature_grad ? call.floats({}) : call.floats({0});
  const InterestSoftmaxGradients<T> gradients{memory_or_null<T>(interests), memory_or_null<T>(candidates),
                                              memory_or_null<T>(general), memory_or_null<T>(bias),
                                              memory_or_null<float>(temperature)};
  const auto room = [&](bool wanted, int64_t size) { return call.floats({wanted ? size : 0}); };
  const Tensor panel = call.panel(), weights = call.floats({p.x.users}), scale = room(std::is_same_v<T, Half>, 2);
  const Tensor user_sums = room(gradients.of_users(), p.user_sums_size());
  const Tensor candidate_sums = room(gradients.of_candidates(), p.candidate_sums_size());
  const Tensor bias_sums = room(gradients.of_candidates(), p.bias_sums_size());
  const Tensor temperature_parts = room(temperature_grad, p.x.users);
  p.backward(mutable_data<T>(panel), data<float>(loss_grad), each ? 1 : 0, call.factor(), data<float>(saved),
             mutable_data<float>(weights), memory_or_null<float>(scale), memory_or_null<float>(user_sums),
             memory_or_null<float>(candidate_sums), memory_or_null<float>(bias_sums),
             memory_or_null<float>(temperature_parts), gradients, Launch(call.interests));
  return {interests, candidates, general, bias, temperature};
}

std::tuple<Tensor, Tensor> interest_softmax_loss(Tensor interests, Tensor candidates, Tensor targets,
                                                 OptionalTensor general, OptionalTensor bias, OptionalTensor exclude,
                                                 OptionalTensor ids, double temperature,
                                                 OptionalTensor temperature_tensor, std::string reduction) {
  return dispatch_call(
      {interests, candidates, targets, general, bias, exclude, ids, temperature, temperature_tensor, reduction},
      [](const auto& call) { return forward(call); });
}

Gradients interest_softmax_loss_backward(Tensor loss_grad, Tensor saved, Tensor interests, Tensor candidates,
                                         Tensor targets, OptionalTensor general, OptionalTensor bias,
                                         OptionalTensor exclude, OptionalTensor ids, double temperature,
                                         OptionalTensor temperature_tensor, std::string reduction, bool interests_grad,
                                         bool candidates_grad, bool general_grad, bool bias_grad,
                                         bool temperature_grad) {
  return dispatch_call(
      {interests, candidates, targets, general, bias, exclude, ids, temperature, temperature_tensor, reduction},
      [&](const auto& call) {
        return backward(call, loss_grad, saved, interests_grad, candidates_grad, general_grad, bias_grad,
                        temperature_grad);
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CUDA, library) {
  library.impl("interest_softmax_loss", TORCH_BOX(&interest_softmax_loss));
  library.impl("interest_softmax_loss_backward", TORCH_BOX(&interest_softmax_loss_backward));
}

}  // namespace cmi_fast::cuda
