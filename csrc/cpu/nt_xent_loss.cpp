#include "cpu/kernels/nt_xent_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/checks.h"
#include "cpu/level.h"
#include "cpu/nt_xent_passes.h"
#include "cpu/parallel.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(NtXentLossKernels, nt_xent_loss)

namespace {

// Sums of e^(s - 1/t) in the inputs' precision stay normal numbers from here on; below, anchors need a running maximum.
constexpr double SHARED_SHIFT_TEMPERATURE = 0.025;

// The options of the schema, as they come.
struct Options {
  double temperature;
  const std::optional<Tensor>& temperature_tensor;
  std::string negatives, direction;
  bool normalize;
};

// The arguments of one call, checked and contiguous, with the buffers that its passes share.
template <class T>
struct Call {
  using C = Compute<T>;
  const NtXentLossKernel<T>& kernel = of_type<T>(CMI_FAST_KERNEL(NtXentLossKernels, nt_xent_loss));
  Tensor first, second, memory;
  typename NtXentLossKernel<T>::Sizes sizes;
  NtXentLoss<T> problem;
  NtXentSchedule schedule;
  C* workspace;

  Call(const Tensor& first_, const Tensor& second_, const Options& options, bool backward, bool temperature_grad) {
    STD_TORCH_CHECK(first_.dim() == 2 && second_.dim() == 2 && first_.numel() > 0 &&
                        first_.numel() == second_.numel() && first_.size(0) == second_.size(0) &&
                        second_.scalar_type() == SCALAR_TYPE<T>,
                    "first and second must be [N, d] of one dtype");
    STD_TORCH_CHECK(options.negatives == "all" || options.negatives == "cross_view", "negatives: ", options.negatives);
    STD_TORCH_CHECK(options.direction == "both" || options.direction == "first", "direction: ", options.direction);
    first = torch::stable::contiguous(first_);
    second = torch::stable::contiguous(second_);
    const double temperature = temperature_value<T>(options.temperature, options.temperature_tensor);
    const int64_t pairs = first.size(0), d = first.size(1);
    sizes = kernel.sizes(pairs, d);
    schedule = NtXentSchedule(sizes.tiles, torch::stable::get_num_threads());
    // One allocation for all buffers, those in double precision first: for a few rows several take as long as the work.
    // All are of whole tiles, so each starts on a cache line.
    const int64_t anchors = sizes.anchors, gradient = backward ? sizes.gradient : 0;
    const int64_t doubles = 2 * anchors * int64_t(sizeof(double) / sizeof(C));
    memory = empty(doubles + sizes.panels + gradient + 5 * anchors + schedule.workers * sizes.workspace);
    double* const sums = static_cast<double*>(memory.mutable_data_ptr());
    C* const matrix = mutable_data<C>(memory) + doubles;
    C* const vector = matrix + sizes.panels + gradient;
    workspace = vector + 5 * anchors;
    problem = {.first = data<T>(first),
               .second = data<T>(second),
               .pairs = pairs,
               .d = d,
               .inverse_temperature = C(1 / temperature),
               .cross_view = options.negatives == "cross_view",
               .both = options.direction == "both",
               .normalize = options.normalize,
               .running = !options.normalize || temperature < SHARED_SHIFT_TEMPERATURE,
               .panels = matrix,
               .inverse = vector,
               .factors = vector + anchors,
               .sums = sums,
               .slopes = temperature_grad ? sums + anchors : nullptr,
               .maxima = vector + 2 * anchors,
               .weights = vector + 3 * anchors,
               .scaled_weights = vector + 4 * anchors,
               .gradient = backward ? matrix + sizes.panels : nullptr};
  }

  NtXentPasses<T, TorchThreads> passes() const {
    return {kernel, problem, schedule, workspace, sizes.workspace, TorchThreads{}};
  }

  // Uninitialised, of the type that sums run in.
  template <class... Sizes>
  Tensor empty(Sizes... sizes) const {
    return torch::stable::new_empty(first, {sizes...}, SCALAR_TYPE<C>);
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward(const Call<T>& call) {
  using C = Compute<T>;
  const auto& p = call.problem;
  const int64_t n = 2 * p.pairs;
  const Tensor losses = call.empty(p.both ? n : p.pairs);
  const Tensor log_sum = call.empty(n);
  call.passes().forward(mutable_data<C>(losses), mutable_data<C>(log_sum));
  return {losses, log_sum};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Call<T>& call, const Tensor& losses_grad_, const Tensor& log_sum_,
                                            bool first_grad, bool second_grad, bool temperature_grad) {
  using C = Compute<T>;
  const auto& p = call.problem;
  const int64_t n = 2 * p.pairs;
  STD_TORCH_CHECK(losses_grad_.numel() == (p.both ? n : p.pairs) && losses_grad_.scalar_type() == SCALAR_TYPE<C> &&
                      log_sum_.numel() == n && log_sum_.scalar_type() == SCALAR_TYPE<C>,
                  "the gradient of the losses and log_sum must be as the forward's outputs");
  const Tensor losses_grad = torch::stable::contiguous(losses_grad_), log_sum = torch::stable::contiguous(log_sum_);
  // What is not wanted is empty. Outputs must not share memory, not even none.
  const Tensor first = first_grad ? torch::stable::empty_like(call.first) : call.empty(0);
  const Tensor second = second_grad ? torch::stable::empty_like(call.second) : call.empty(0);
  const Tensor temperature = temperature_grad ? call.empty() : call.empty(0);
  const double slope =
      call.passes().backward(data<C>(losses_grad), data<C>(log_sum), first_grad ? mutable_data<T>(first) : nullptr,
                             second_grad ? mutable_data<T>(second) : nullptr);
  if (temperature_grad) *mutable_data<C>(temperature) = C(slope);
  return {first, second, temperature};
}

std::tuple<Tensor, Tensor> nt_xent_loss(Tensor first, Tensor second, double temperature,
                                        std::optional<Tensor> temperature_tensor, std::string negatives,
                                        std::string direction, bool normalize) {
  const Options options{temperature, temperature_tensor, negatives, direction, normalize};
  return dispatch(first, "first",
                  [&](auto type) { return forward(Call<decltype(type)>(first, second, options, false, false)); });
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_loss_backward(Tensor losses_grad, Tensor log_sum, Tensor first,
                                                         Tensor second, double temperature,
                                                         std::optional<Tensor> temperature_tensor,
                                                         std::string negatives, std::string direction, bool normalize,
                                                         bool first_grad, bool second_grad, bool temperature_grad) {
  const Options options{temperature, temperature_tensor, negatives, direction, normalize};
  return dispatch(first, "first", [&](auto type) {
    const Call<decltype(type)> call(first, second, options, true, temperature_grad);
    return backward(call, losses_grad, log_sum, first_grad, second_grad, temperature_grad);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("nt_xent_loss", TORCH_BOX(&nt_xent_loss));
  library.impl("nt_xent_loss_backward", TORCH_BOX(&nt_xent_loss_backward));
}

}  // namespace cmi_fast
