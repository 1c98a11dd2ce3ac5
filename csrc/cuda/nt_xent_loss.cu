// nt_xent_loss on CUDA: checks, memory, launches.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cuda/launch.h"
#include "cuda/nt_xent_passes.h"

namespace cmi_fast::cuda {
namespace {

// The options of the schema, as they come.
struct Options {
  double temperature;
  const std::optional<Tensor>& temperature_tensor;
  std::string negatives, direction;
  bool normalize;
};

// The arguments of one call, checked and contiguous, with the memory that its passes write first.
template <class T>
struct Call {
  Tensor first, second, panel, factors;
  NtXentPasses<T> passes;

  Call(const Tensor& first_, const Tensor& second_, const Options& options) {
    STD_TORCH_CHECK(first_.dim() == 2 && second_.dim() == 2 && first_.numel() > 0 &&
                        first_.size(0) == second_.size(0) && first_.size(1) == second_.size(1) &&
                        second_.scalar_type() == first_.scalar_type() && second_.is_cuda() &&
                        second_.get_device_index() == first_.get_device_index(),
                    "first and second must be [N, d] of one dtype on one GPU");
    STD_TORCH_CHECK(first_.size(0) < int64_t(1) << 29 && first_.size(1) < int64_t(1) << 20,
                    "first: expected fewer than 2^29 rows and 2^20 dimensions");
    STD_TORCH_CHECK(options.negatives == "all" || options.negatives == "cross_view", "negatives: ", options.negatives);
    STD_TORCH_CHECK(options.direction == "both" || options.direction == "first", "direction: ", options.direction);
    first = torch::stable::contiguous(first_);
    second = torch::stable::contiguous(second_);
    passes = {.first = data<T>(first),
              .second = data<T>(second),
              .pairs = int(first.size(0)),
              .d = int(first.size(1)),
              .temperature = float(options.temperature),
              .temperature_pointer = device_temperature(options.temperature_tensor, first),
              .cross_view = options.negatives == "cross_view",
              .both = options.direction == "both",
              .normalize = options.normalize,
              .panel = nullptr,
              .factors = nullptr};
    panel = torch::stable::new_empty(first, {passes.panel_size()}, first.scalar_type());
    factors = floats({passes.rows(), 4});
    passes.panel = mutable_data<T>(panel);
    passes.factors = mutable_data<RowFactors>(factors);
  }

  // Uninitialised.
  Tensor floats(std::initializer_list<int64_t> sizes) const {
    return torch::stable::new_empty(first, sizes, ScalarType::Float);
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward(const Call<T>& call) {
  const auto& p = call.passes;
  const Tensor partial = torch::stable::new_zeros(call.first, {p.partial_size()}, ScalarType::Float);
  const Tensor log_sum = call.floats({p.rows()}), losses = call.floats({int64_t(p.anchor_views()) * p.pairs});
  p.forward(mutable_data<float>(partial), mutable_data<float>(log_sum), mutable_data<float>(losses),
            Launch(call.first));
  return {losses, log_sum};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Call<T>& call, const Tensor& losses_grad_, const Tensor& log_sum_,
                                            bool first_grad, bool second_grad, bool temperature_grad) {
  const auto& p = call.passes;
  STD_TORCH_CHECK(losses_grad_.numel() == int64_t(p.anchor_views()) * p.pairs && log_sum_.numel() == p.rows() &&
                      losses_grad_.scalar_type() == ScalarType::Float && log_sum_.scalar_type() == ScalarType::Float &&
                      losses_grad_.is_cuda() && log_sum_.is_cuda(),
                  "the gradient of the losses and log_sum must be as the forward's outputs");
  const Tensor losses_grad = torch::stable::contiguous(losses_grad_), log_sum = torch::stable::contiguous(log_sum_);
  const Tensor none = call.floats({0}), unit_grad = call.floats({p.rows(), p.d}), along = call.floats({p.rows()});
  const Tensor first = first_grad ? torch::stable::empty_like(call.first) : none;
  const Tensor second = second_grad ? torch::stable::empty_like(call.second) : none;
  const Tensor temperature = temperature_grad ? call.floats({}) : none;
  const Tensor scale = std::is_same_v<T, Half> ? call.floats({2}) : none;
  const auto or_null = [](const Tensor& tensor, auto type) -> decltype(type)* {
    return tensor.numel() > 0 ? mutable_data<decltype(type)>(tensor) : nullptr;
  };
  p.backward(data<float>(losses_grad), data<float>(log_sum), mutable_data<float>(unit_grad), mutable_data<float>(along),
             or_null(scale, float()), or_null(first, T()), or_null(second, T()), or_null(temperature, float()),
             Launch(call.first));
  return {first, second, temperature};
}

std::tuple<Tensor, Tensor> nt_xent_loss(Tensor first, Tensor second, double temperature,
                                        std::optional<Tensor> temperature_tensor, std::string negatives,
                                        std::string direction, bool normalize) {
  const Options options{temperature, temperature_tensor, negatives, direction, normalize};
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  return dispatch(first, "first", [&](auto type) { return forward(Call<decltype(type)>(first, second, options)); });
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_loss_backward(Tensor losses_grad, Tensor log_sum, Tensor first,
                                                         Tensor second, double temperature,
                                                         std::optional<Tensor> temperature_tensor,
                                                         std::string negatives, std::string direction, bool normalize,
                                                         bool first_grad, bool second_grad, bool temperature_grad) {
  const Options options{temperature, temperature_tensor, negatives, direction, normalize};
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  return dispatch(first, "first", [&](auto type) {
    const Call<decltype(type)> call(first, second, options);
    return backward(call, losses_grad, log_sum, first_grad, second_grad, temperature_grad);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CUDA, library) {
  library.impl("nt_xent_loss", TORCH_BOX(&nt_xent_loss));
  library.impl("nt_xent_loss_backward", TORCH_BOX(&nt_xent_loss_backward));
}

}  // namespace cmi_fast::cuda
