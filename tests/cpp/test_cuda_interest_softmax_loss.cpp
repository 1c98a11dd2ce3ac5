// The CUDA kernels of interest_softmax_loss, run by the emulator, against Eq. 7; and how their work is cut.
#include "cuda/interest_softmax_loss_passes.h"
#include "emulated.h"
#include "interest_softmax.h"

namespace cmi_fast::testing {
namespace {

template <class T>
InterestSoftmaxResult<T> run_emulated(const InterestSoftmaxCase& c, const InterestSoftmaxInputs<T>& inputs,
                                      bool descending = false, bool temperature_tensor = false) {
  const Emulated launch{descending};
  const float temperature = float(c.temperature);
  const cuda::InterestSoftmaxPasses<T> passes{
      .x = {.candidates = {},
            .interests = {},
            .general = {},
            .bias = c.options ? inputs.bias.data() : nullptr,
            .exclude = c.options ? reinterpret_cast<const bool*>(inputs.exclude.data()) : nullptr,
            .ids = c.options ? inputs.ids.data() : nullptr,
            .targets = inputs.targets.data(),
            .log_sums = nullptr,
            .weights = nullptr,
            .users = int(c.users),
            .m = int(c.m),
            .count = int(c.count),
            .d = int(c.d),
            .groups = cuda::groups_for(int(c.m)),
            .temperature = temperature_tensor ? NAN : temperature,
            .temperature_pointer = temperature_tensor ? &temperature : nullptr},
      .interests = inputs.interests.data(),
      .candidates = inputs.candidates.data(),
      .general = c.options ? inputs.general.data() : nullptr};
  InterestSoftmaxResult<T> result{poisoned<float>(c.users), poisoned<T>(c.users * c.m * c.d),
                                  poisoned<T>(c.count * c.d), poisoned<T>(c.users * c.d), poisoned<T>(c.count)};
  auto saved = poisoned<float>(2 * c.users);
  {
    auto panel = poisoned<T>(passes.panel_size());
    auto log_sums = poisoned<float>(passes.log_sums_size());
    passes.forward(panel.data(), log_sums.data(), result.losses.data(), saved.data(), launch);
  }
  auto panel = poisoned<T>(passes.panel_size());
  auto weights = poisoned<float>(c.users), scale = poisoned<float>(2), temperature_parts = poisoned<float>(c.users);
  auto user_sums = poisoned<float>(passes.user_sums_size()), bias_sums = poisoned<float>(passes.bias_sums_size());
  auto candidate_sums = poisoned<float>(passes.candidate_sums_size());
  float temperature_grad = NAN;
  passes.backward(panel.data(), inputs.losses_grad.data(), 1, 1, saved.data(), weights.data(),
                  std::is_same_v<T, Half> ? scale.data() : nullptr, user_sums.data(), candidate_sums.data(),
                  bias_sums.data(), temperature_parts.data(),
                  {result.interests.data(), result.candidates.data(), c.options ? result.general.data() : nullptr,
                   c.options ? result.bias.data() : nullptr, &temperature_grad},
                  launch);
  result.temperature = temperature_grad;
  return result;
}

template <class T>
std::string label(const InterestSoftmaxCase& c) {
  return "CUDA " + ELEMENT<T>.name + " " + c.name();
}

template <class T>
void test_case(const InterestSoftmaxCase& c, bool temperature_tensor = false) {
  const InterestSoftmaxInputs<T> inputs(c);
  check_interest_softmax(run_emulated(c, inputs, false, temperature_tensor), c, inputs, label<T>(c));
}

template <class T>
void test_order(const InterestSoftmaxCase& c) {
  const InterestSoftmaxInputs<T> inputs(c);
  check(run_emulated(c, inputs).same_bits_as(run_emulated(c, inputs, true)),
        label<T>(c) + "in whatever order threads run");
}

// Equal interests: the first has the gradient.
template <class T>
void test_ties(int64_t m) {
  const InterestSoftmaxCase c{9, m, 70, 20};
  InterestSoftmaxInputs<T> inputs(c);
  for (int64_t b = 0; b < c.users; ++b)
    for (int64_t k = 1; k < m; ++k)
      std::copy_n(&inputs.interests[b * m * c.d], c.d, &inputs.interests[(b * m + k) * c.d]);
  const auto ours = run_emulated(c, inputs);
  check_interest_softmax(ours, c, inputs, label<T>(c) + "ties: ");
}

// All candidates but the target excluded: no loss, no gradient.
template <class T>
void test_alone() {
  const InterestSoftmaxCase c{9, 3, 70, 20};
  InterestSoftmaxInputs<T> inputs(c);
  for (int64_t i = 0; i < c.users * c.count; ++i) inputs.exclude[i] = inputs.targets[i / c.count] != i % c.count;
  const auto ours = run_emulated(c, inputs);
  for (const float loss : ours.losses) check(loss == 0, label<T>(c) + "alone: no loss");
  for (const T x : ours.candidates) check(to_double(x) == 0, label<T>(c) + "alone: no gradient");
  for (const T x : ours.interests) check(to_double(x) == 0, label<T>(c) + "alone: no gradient");
}

// A NaN among a user's interests reaches its loss and nobody else's; an index that is no row reads nothing.
template <class T>
void test_nan() {
  const InterestSoftmaxCase c{9, 3, 70, 20};
  InterestSoftmaxInputs<T> inputs(c);
  inputs.interests[(2 * c.m + 1) * c.d + 4] = ELEMENT<T>.nan;
  inputs.targets[5] = c.count;
  inputs.targets[6] = -1;
  const auto ours = run_emulated(c, inputs);
  for (int64_t b = 0; b < c.users; ++b)
    check(std::isnan(ours.losses[b]) == (b == 2 || b == 5 || b == 6), label<T>(c) + "NaN where it belongs");
}

template <class T>
void test_type() {
  test_ties<T>(3);
  test_ties<T>(17);
  test_alone<T>();
  test_nan<T>();
  // A tile has 64 candidates and 8, 4, 2 or 1 users, a chunk 64 dimensions or 32.
  for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64}) test_case<T>({9, m, 70, 20});
  for (const int64_t users : {1, 7, 8, 9, 17}) test_case<T>({users, 8, 65, 16});
  for (const int64_t count : {1, 2, 63, 64, 65, 200}) test_case<T>({9, 4, count, 8});
  for (const int64_t d : {1, 15, 17, 32, 33, 64, 65, 130}) test_case<T>({9, 3, 70, d});
  test_case<T>({9, 4, 70, 20, 0.3, false});
  test_case<T>({9, 4, 70, 20, 2, true});
  test_case<T>({9, 4, 70, 20, 0.05, true}, true);
  test_order<T>({17, 12, 130, 70});
}

// The parts are all tiles, each once, and none is empty.
void test_parts() {
  for (const int kept : {1, 5, 128, 511, 512, 3000}) {
    for (const int moving : {1, 2, 31, 512, 2000}) {
      const auto parts = cuda::Parts::of(kept, moving);
      const std::string what = "parts of " + std::to_string(moving) + " tiles beside " + std::to_string(kept) + ": ";
      check(parts.first(0) == 0 && parts.last(parts.count - 1) == moving, what + "all tiles");
      check(kept * parts.count <= std::max(kept, cuda::Parts::BLOCKS), what + "no more blocks than wanted");
      for (int part = 0; part < parts.count; ++part) {
        check(parts.first(part) < parts.last(part), what + "none is empty");
        if (part > 0) check(parts.last(part - 1) == parts.first(part), what + "one after the other");
      }
    }
  }
}

}  // namespace

void test_cuda_interest_softmax_loss() {
  test_parts();
  test_type<float>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
