#include "cpu/kernels/interest_softmax_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>
#include <vector>

#include "cpu/checks.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/reduction.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(InterestSoftmaxLossKernels, interest_softmax_loss)

template <>
constexpr ScalarType SCALAR_TYPE<int64_t> = ScalarType::Long;
template <>
constexpr ScalarType SCALAR_TYPE<bool> = ScalarType::Bool;

namespace {

constexpr int64_t MAX_PARTS = 64;
constexpr int64_t MAX_INTERESTS = 256;  // what a byte tells apart

enum class Pass { forward, backward };

// The tensors of the schema, as they come.
struct Inputs {
  const Tensor &interests, &candidates, &targets;
  const std::optional<Tensor>&general, &candidate_bias, &exclude, &candidate_ids;
};

// What the forward leaves for the backward, in one tensor: to make and to pass on several takes as long as a small
// batch.
template <class T>
struct Saved {
  int64_t pairs, scales_count, misses_count;  // sizes of the parts

  Saved(int64_t users, int64_t tiles)
      : pairs(tiles * users * CANDIDATE_TILE), scales_count(users * tiles), misses_count(users) {}

  int64_t size() const { return pairs + pairs / int64_t(sizeof(T)) + scales_count + misses_count; }
  T* exponentials(T* memory) const { return memory; }
  uint8_t* best(T* memory) const { return reinterpret_cast<uint8_t*>(memory + pairs); }
  T* scales(T* memory) const { return memory + pairs + pairs / int64_t(sizeof(T)); }
  T* misses(T* memory) const { return scales(memory) + scales_count; }
};

// The arguments of one call, checked and contiguous, with the buffers that its passes share.
template <class T>
struct Call {
  const InterestSoftmaxLossKernel<T>& kernel =
      of_type<T>(CMI_FAST_KERNEL(InterestSoftmaxLossKernels, interest_softmax_loss));
  std::vector<Tensor> owned;  // what the problem points into
  typename InterestSoftmaxLossKernel<T>::Sizes sizes;
  InterestSoftmaxLoss<T> problem{};
  int64_t user_parts, workers;
  Tensor memory;
  T* workspace;
  T* losses;  // [users], or their cotangents

  Call(const Inputs& inputs, double temperature, const std::optional<Tensor>& temperature_tensor, Pass pass) {
    auto& p = problem;
    const Tensor& interests = inputs.interests;
    STD_TORCH_CHECK(interests.dim() == 3 && interests.numel() > 0 && interests.size(1) <= MAX_INTERESTS,
                    "interests must be [B, m, d] with m up to ", MAX_INTERESTS);
    p.users = interests.size(0), p.m = interests.size(1), p.d = interests.size(2);
    STD_TORCH_CHECK(inputs.candidates.dim() == 2 && inputs.candidates.size(0) > 0, "candidates must be [C, d]");
    p.count = inputs.candidates.size(0);
    p.interests = rows(interests, "interests", {p.users, p.m, p.d});
    p.candidates = rows(inputs.candidates, "candidates", {p.count, p.d});
    p.targets = input<int64_t>(inputs.targets, "targets", {p.users});
    if (inputs.general) p.general = rows(*inputs.general, "general", {p.users, p.d});
    if (inputs.candidate_bias) p.bias = rows(*inputs.candidate_bias, "candidate_bias", {p.count});
    if (inputs.exclude) p.exclude = input<bool>(*inputs.exclude, "exclude", {p.users, p.count});
    if (inputs.candidate_ids) p.ids = input<int64_t>(*inputs.candidate_ids, "candidate_ids", {p.count});
    STD_TORCH_CHECK(p.candidates.element == p.interests.element &&
                        (!p.general.data || p.general.element == p.interests.element) &&
                        (!p.bias.data || p.bias.element == p.interests.element),
                    "floating inputs must share one dtype");
    for (int64_t b = 0; b < p.users; ++b)
      STD_TORCH_CHECK(p.targets[b] >= 0 && p.targets[b] < p.count, "targets[", b, "] = ", p.targets[b],
                      " is outside [0, ", p.count, ")");
    for (int64_t b = 0; p.exclude && b < p.users; ++b)
      STD_TORCH_CHECK(!p.exclude[b * p.count + p.targets[b]], "exclude[", b, ", ", p.targets[b],
                      "] removes the target of row ", b);
    p.inverse_temperature = T(1 / temperature_value<T>(temperature, temperature_tensor));
    sizes = kernel.sizes(p.users, p.m, p.count, p.d);
    user_parts = std::min((p.users + sizes.strip - 1) / sizes.strip, MAX_PARTS);
    // A thread is worth waking for two million multiply-adds, some 30 microseconds.
    const double work = double(p.users) * p.m * p.count * p.d;
    workers = std::clamp<int64_t>(int64_t(work / 2e6), 1, torch::stable::get_num_threads());
    allocate(pass);
    users([&](int64_t, int64_t begin, int64_t end, T* memory) { kernel.pack_queries(p, begin, end, memory); });
  }

  const Tensor& keep(const Tensor& tensor, const char* name, std::vector<int64_t> shape) {
    bool same = tensor.dim() == int64_t(shape.size()) && tensor.is_cpu();
    for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(i) == shape[i];
    STD_TORCH_CHECK(same, name, " must fit interests in shape and device");
    return owned.emplace_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }

  template <class U>
  const U* input(const Tensor& tensor, const char* name, std::vector<int64_t> shape) {
    STD_TORCH_CHECK(tensor.scalar_type() == SCALAR_TYPE<U>, name, " is of the wrong dtype");
    return data<U>(keep(tensor, name, shape));
  }

  ConstRows rows(const Tensor& tensor, const char* name, std::vector<int64_t> shape) {
    return {keep(tensor, name, shape).const_data_ptr(), element<T>(tensor)};
  }

  // One allocation for all buffers of the pass.
  void allocate(Pass pass) {
    auto& p = problem;
    const bool forward = pass == Pass::forward;
    const struct {
      T** buffer;
      int64_t size;
    } wanted[] = {{&workspace, workers * sizes.workspace},
                  {&losses, p.users},
                  {&p.queries, sizes.queries},
                  {&p.columns, forward ? sizes.columns : 0},
                  {&p.biases, forward ? sizes.tiles * CANDIDATE_TILE : 0},
                  {&p.sums, forward ? p.users * sizes.tiles : 0},
                  {&p.target_scores, forward ? p.users : 0},
                  {&p.rows, forward ? 0 : sizes.rows}};
    const auto whole_lines = [](int64_t size) { return (size + 15) / 16 * 16; };
    int64_t total = 0;
    for (const auto& [buffer, size] : wanted) total += whole_lines(size);
    memory = torch::stable::new_empty(owned.front(), {total}, SCALAR_TYPE<T>);
    T* next = mutable_data<T>(memory);
    for (const auto& [buffer, size] : wanted) {
      *buffer = next;
      next += whole_lines(size);
    }
  }

  // run(part, workspace) for every part.
  template <class Run>
  void parallel(int64_t parts, const Run& run) const {
    for_each_part(parts, std::min(workers, parts), TorchThreads{},
                  [&](int64_t part, int64_t worker) { run(part, workspace + worker * sizes.workspace); });
  }

  // run(part, begin, end, workspace) for ranges of users, whole strips each.
  template <class Run>
  void users(const Run& run) const {
    parallel(user_parts, [&](int64_t part, T* memory) { run(part, user(part), user(part + 1), memory); });
  }

  // run(begin, end, workspace) for ranges of tiles.
  template <class Run>
  void tiles(const Run& run) const {
    const int64_t parts = std::min(sizes.tiles, MAX_PARTS);
    parallel(parts, [&](int64_t part, T* memory) {
      run(sizes.tiles * part / parts, sizes.tiles * (part + 1) / parts, memory);
    });
  }

  int64_t user(int64_t part) const {
    const int64_t strips = (problem.users + sizes.strip - 1) / sizes.strip;
    return std::min(strips * part / user_parts * sizes.strip, problem.users);
  }
};

template <class T>
std::tuple<Tensor, Tensor> forward(Call<T> call, Reduction reduction) {
  auto& p = call.problem;
  const int64_t tiles = call.sizes.tiles;
  const Saved<T> layout(p.users, tiles);
  const Tensor saved = torch::stable::new_empty(call.memory, {layout.size()});
  T* const kept = mutable_data<T>(saved);
  const InterestSoftmaxLossOutputs<T> outputs{call.losses, layout.exponentials(kept), layout.scales(kept),
                                              layout.misses(kept), layout.best(kept)};
  call.tiles([&](int64_t begin, int64_t end, T* memory) { call.kernel.pack_columns(p, begin, end, memory); });
  // A part is a range of users against a range of tiles; the latter only where there are few users.
  const int64_t tile_parts = std::min(tiles, MAX_PARTS / call.user_parts);
  call.parallel(call.user_parts * tile_parts, [&](int64_t part, T* workspace) {
    const int64_t user_part = part / tile_parts, tile_part = part % tile_parts;
    call.kernel.score(p, outputs, call.user(user_part), call.user(user_part + 1), tiles * tile_part / tile_parts,
                      tiles * (tile_part + 1) / tile_parts, workspace);
  });
  call.users([&](int64_t, int64_t begin, int64_t end, T*) { call.kernel.finish_losses(p, outputs, begin, end); });
  return {reduce(call.losses, p.users, reduction, call.memory), saved};
}

// Which gradients are wanted.
struct Wanted {
  bool interests, candidates, general, candidate_bias, temperature;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(Call<T> call, const Tensor& loss_grad, const Tensor& saved, Reduction reduction,
                   const Wanted& wanted) {
  auto& p = call.problem;
  const int64_t tiles = call.sizes.tiles;
  const Saved<T> layout(p.users, tiles);
  const bool scalar = reduction != Reduction::none;
  const auto shape = scalar ? std::vector<int64_t>{} : std::vector<int64_t>{p.users};
  spread(call.template input<T>(loss_grad, "loss_grad", shape), p.users, reduction, call.losses);
  T* const kept = const_cast<T*>(call.template input<T>(saved, "saved", {layout.size()}));
  const auto none = [&] { return torch::stable::new_empty(call.memory, {0}); };  // outputs must not share memory
  const auto gradient = [&](bool want, std::initializer_list<int64_t> shape) {
    return want ? torch::stable::new_empty(call.owned.front(), shape) : none();
  };
  const auto rows = [](bool want, const Tensor& tensor) {
    return MutableRows{want ? tensor.mutable_data_ptr() : nullptr, element<T>(tensor)};
  };
  const Tensor interests = gradient(wanted.interests, {p.users, p.m, p.d});
  const Tensor candidates = gradient(wanted.candidates, {p.count, p.d});
  const Tensor general = gradient(wanted.general, {p.users, p.d});
  const Tensor bias = gradient(wanted.candidate_bias, {p.count});
  const Tensor temperature = wanted.temperature ? torch::stable::new_empty(call.memory, {}) : none();
  const InterestSoftmaxLossGradients<T> gradients{.losses = call.losses,
                                                  .exponentials = layout.exponentials(kept),
                                                  .scales = layout.scales(kept),
                                                  .misses = layout.misses(kept),
                                                  .best = layout.best(kept),
                                                  .interests = rows(wanted.interests, interests),
                                                  .candidates = rows(wanted.candidates, candidates),
                                                  .general = rows(wanted.general, general),
                                                  .bias = rows(wanted.candidate_bias, bias)};
  if (wanted.interests || wanted.general || wanted.temperature) {
    call.tiles([&](int64_t begin, int64_t end, T*) { call.kernel.pack_rows(p, begin, end); });
    std::vector<double> parts(call.user_parts);
    call.users([&](int64_t part, int64_t begin, int64_t end, T* workspace) {
      parts[part] = call.kernel.user_gradients(p, gradients, begin, end, workspace);
    });
    if (wanted.temperature) *mutable_data<T>(temperature) = T(std::accumulate(parts.begin(), parts.end(), 0.0));
  }
  if (wanted.candidates || wanted.candidate_bias)
    call.tiles([&](int64_t begin, int64_t end, T* workspace) {
      call.kernel.candidate_gradients(p, gradients, begin, end, workspace);
    });
  return {interests, candidates, general, bias, temperature};
}

template <class Run>
auto dispatch_computed(const Tensor& interests, const Run& run) {
  return dispatch(interests, "interests", [&](auto type) { return run(Compute<decltype(type)>()); });
}

using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> interest_softmax_loss(Tensor interests, Tensor candidates, Tensor targets,
                                                 OptionalTensor general, OptionalTensor candidate_bias,
                                                 OptionalTensor exclude, OptionalTensor candidate_ids,
                                                 double temperature, OptionalTensor temperature_tensor,
                                                 std::string reduction) {
  const Inputs inputs{interests, candidates, targets, general, candidate_bias, exclude, candidate_ids};
  return dispatch_computed(interests, [&](auto type) {
    return forward(Call<decltype(type)>(inputs, temperature, temperature_tensor, Pass::forward),
                   reduction_of(reduction));
  });
}

Gradients interest_softmax_loss_backward(Tensor loss_grad, Tensor saved, Tensor interests, Tensor candidates,
                                         Tensor targets, OptionalTensor general, OptionalTensor candidate_bias,
                                         OptionalTensor exclude, OptionalTensor candidate_ids, double temperature,
                                         OptionalTensor temperature_tensor, std::string reduction, bool interests_grad,
                                         bool candidates_grad, bool general_grad, bool candidate_bias_grad,
                                         bool temperature_grad) {
  const Inputs inputs{interests, candidates, targets, general, candidate_bias, exclude, candidate_ids};
  const Wanted wanted{interests_grad, candidates_grad, general_grad, candidate_bias_grad, temperature_grad};
  return dispatch_computed(interests, [&](auto type) {
    return backward(Call<decltype(type)>(inputs, temperature, temperature_tensor, Pass::backward), loss_grad, saved,
                    reduction_of(reduction), wanted);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("interest_softmax_loss", TORCH_BOX(&interest_softmax_loss));
  library.impl("interest_softmax_loss_backward", TORCH_BOX(&interest_softmax_loss_backward));
}

}  // namespace cmi_fast
