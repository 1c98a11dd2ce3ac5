// interest_softmax_loss twice: the kernel of the current ISA level in the operator's passes, and Eq. 7 term by term.
#pragma once

#include "checking.h"
#include "cpu/kernels/half.h"
#include "cpu/kernels/interest_softmax_loss.h"

namespace cmi_fast::testing {

struct InterestSoftmaxCase {
  int64_t users, m, count, d;
  double temperature = 0.3;
  bool options = true;  // general interest, bias, exclude and ids
  std::string name() const;
};

template <class T>
struct InterestSoftmaxInputs {
  std::vector<T> interests, candidates, general, bias;
  std::vector<Compute<T>> losses_grad;
  std::vector<int64_t> targets, ids;
  std::vector<uint8_t> exclude;  // bool: a vector of those has no memory of its own

  explicit InterestSoftmaxInputs(const InterestSoftmaxCase& c)
      : interests(random_numbers<T>(c.users * c.m * c.d, 1)),
        candidates(random_numbers<T>(c.count * c.d, 2)),
        general(random_numbers<T>(c.users * c.d, 3)),
        bias(random_numbers<T>(c.count, 4)),
        losses_grad(random_numbers<Compute<T>>(c.users, 5)),
        targets(c.users),
        ids(c.count),
        exclude(c.users * c.count) {
    for (int64_t b = 0; b < c.users; ++b) targets[b] = b * 37 % c.count;
    for (int64_t i = 0; i < c.count; ++i) ids[i] = i % (c.count / 2 + 1);
    for (int64_t i = 0; i < c.users * c.count; ++i) exclude[i] = i % 7 == 3 && targets[i / c.count] != i % c.count;
  }
};

template <class T>
struct InterestSoftmaxResult {
  std::vector<Compute<T>> losses;
  std::vector<T> interests, candidates, general, bias;
  double temperature = 0;

  bool same_bits_as(const InterestSoftmaxResult& other) const {
    return same_bits(losses, other.losses) && same_bits(interests, other.interests) &&
           same_bits(candidates, other.candidates) && same_bits(general, other.general) &&
           same_bits(bias, other.bias) && temperature == other.temperature;
  }
};

// The current level's.
template <class C>
const InterestSoftmaxLossKernel<C>& interest_softmax_kernel();

template <class T>
constexpr Element ELEMENT_IN_MEMORY = std::is_same_v<T, BFloat16> ? Element::bfloat16
                                      : std::is_same_v<T, Half>   ? Element::float16
                                                                  : Element::computed;

// Forward and backward. Every buffer is an allocation of its own, of exactly the size that the kernel asks for. A pass
// is cut into up to `parts` ranges, each a worker's with a workspace of its own.
template <class T, class Parallel>
InterestSoftmaxResult<T> run_interest_softmax(const InterestSoftmaxCase& c, const InterestSoftmaxInputs<T>& inputs,
                                              const Parallel& parallel, int64_t parts) {
  using C = Compute<T>;
  const InterestSoftmaxLossKernel<C>& kernel = interest_softmax_kernel<C>();
  const auto sizes = kernel.sizes(c.users, c.m, c.count, c.d);
  const int64_t pairs = sizes.tiles * c.users * CANDIDATE_TILE, strips = (c.users + sizes.strip - 1) / sizes.strip;
  const auto in = [](const std::vector<T>& rows) { return ConstRows{rows.data(), ELEMENT_IN_MEMORY<T>}; };
  const auto out = [](std::vector<T>& rows) { return MutableRows{rows.data(), ELEMENT_IN_MEMORY<T>}; };
  auto queries = poisoned<C>(sizes.queries), columns = poisoned<C>(sizes.columns), rows = poisoned<C>(sizes.rows);
  auto biases = poisoned<C>(sizes.tiles * CANDIDATE_TILE), sums = poisoned<C>(c.users * sizes.tiles);
  auto target_scores = poisoned<C>(c.users);
  const InterestSoftmaxLoss<C> problem{.interests = in(inputs.interests),
                                       .candidates = in(inputs.candidates),
                                       .general = c.options ? in(inputs.general) : ConstRows{},
                                       .bias = c.options ? in(inputs.bias) : ConstRows{},
                                       .targets = inputs.targets.data(),
                                       .exclude = c.options ? (const bool*)inputs.exclude.data() : nullptr,
                                       .ids = c.options ? inputs.ids.data() : nullptr,
                                       .users = c.users,
                                       .m = c.m,
                                       .count = c.count,
                                       .d = c.d,
                                       .inverse_temperature = C(1 / c.temperature),
                                       .queries = queries.data(),
                                       .columns = columns.data(),
                                       .biases = biases.data(),
                                       .rows = rows.data(),
                                       .sums = sums.data(),
                                       .target_scores = target_scores.data()};
  const auto ranges = [&](int64_t count, const auto& run) {
    parallel(std::min(parts, count), [&](int64_t part) {
      const int64_t all = std::min(parts, count);
      run(part, count * part / all, count * (part + 1) / all, poisoned<C>(sizes.workspace).data());
    });
  };
  const auto users = [&](const auto& run) {
    ranges(strips, [&](int64_t part, int64_t begin, int64_t end, C* workspace) {
      run(part, begin * sizes.strip, std::min(end * sizes.strip, c.users), workspace);
    });
  };
  const auto tiles = [&](const auto& run) {
    ranges(sizes.tiles, [&](int64_t, int64_t begin, int64_t end, C* workspace) { run(begin, end, workspace); });
  };

  InterestSoftmaxResult<T> result{poisoned<C>(c.users), poisoned<T>(c.users * c.m * c.d), poisoned<T>(c.count * c.d),
                                  poisoned<T>(c.users * c.d), poisoned<T>(c.count)};
  auto exponentials = poisoned<C>(pairs), scales = poisoned<C>(c.users * sizes.tiles), misses = poisoned<C>(c.users);
  std::vector<uint8_t> best(pairs, 255);
  const InterestSoftmaxLossOutputs<C> outputs{result.losses.data(), exponentials.data(), scales.data(), misses.data(),
                                              best.data()};
  users(
      [&](int64_t, int64_t begin, int64_t end, C* workspace) { kernel.pack_queries(problem, begin, end, workspace); });
  tiles([&](int64_t begin, int64_t end, C* workspace) { kernel.pack_columns(problem, begin, end, workspace); });
  users([&](int64_t, int64_t begin, int64_t end, C* workspace) {
    const int64_t half = sizes.tiles / 2;
    if (half > 0) kernel.score(problem, outputs, begin, end, 0, half, workspace);
    kernel.score(problem, outputs, begin, end, half, sizes.tiles, workspace);
  });
  users([&](int64_t, int64_t begin, int64_t end, C*) { kernel.finish_losses(problem, outputs, begin, end); });

  const InterestSoftmaxLossGradients<C> gradients{.losses = inputs.losses_grad.data(),
                                                  .exponentials = exponentials.data(),
                                                  .scales = scales.data(),
                                                  .misses = misses.data(),
                                                  .best = best.data(),
                                                  .interests = out(result.interests),
                                                  .candidates = out(result.candidates),
                                                  .general = c.options ? out(result.general) : MutableRows{},
                                                  .bias = c.options ? out(result.bias) : MutableRows{}};
  tiles([&](int64_t begin, int64_t end, C*) { kernel.pack_rows(problem, begin, end); });
  std::vector<double> temperature(strips);
  users([&](int64_t part, int64_t begin, int64_t end, C* workspace) {
    temperature[part] = kernel.user_gradients(problem, gradients, begin, end, workspace);
  });
  for (const double x : temperature) result.temperature += x;
  tiles([&](int64_t begin, int64_t end, C* workspace) {
    kernel.candidate_gradients(problem, gradients, begin, end, workspace);
  });
  return result;
}

// Against Eq. 7 and its derivative, in double precision.
template <class T>
void check_interest_softmax(const InterestSoftmaxResult<T>& ours, const InterestSoftmaxCase& c,
                            const InterestSoftmaxInputs<T>& inputs, const std::string& what);

}  // namespace cmi_fast::testing
