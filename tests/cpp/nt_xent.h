// nt_xent_loss twice: the kernel of the current ISA level under the operator's own schedule, and Eq. 6 term by term.
#pragma once

#include "checking.h"
#include "cpu/nt_xent_passes.h"

namespace cmi_fast::testing {

struct NtXentCase {
  int64_t pairs, d;
  double temperature;
  bool cross_view, both, normalize;
  bool temperature_grad = true;

  int64_t anchors() const { return both ? 2 * pairs : pairs; }
  // What the operator decides: a shared shift needs unit rows, and e^(-2/t) far from denormal.
  bool running() const { return !normalize || temperature < 0.025; }
  std::string name() const;
};

template <class T>
struct NtXentInputs {
  std::vector<T> first, second;
  std::vector<Compute<T>> losses_grad;

  explicit NtXentInputs(const NtXentCase& c)
      : first(random_numbers<T>(c.pairs * c.d, 1)),
        second(random_numbers<T>(c.pairs * c.d, 2)),
        losses_grad(random_numbers<Compute<T>>(c.anchors(), 3)) {
    // Scores of plain dot products stay within some tens.
    const double scale = c.normalize ? 1 : 2 / std::sqrt(double(c.d));
    for (size_t i = 0; i < first.size(); ++i) {
      first[i] = from_double<T>(to_double(first[i]) * scale);
      second[i] = from_double<T>(to_double(first[i]) + 0.5 * scale * to_double(second[i]));
    }
  }
};

template <class T>
struct NtXentResult {
  std::vector<Compute<T>> losses, log_sum;
  std::vector<T> first, second;
  std::vector<Compute<T>> temperature;

  bool same_bits_as(const NtXentResult& other) const {
    return same_bits(losses, other.losses) && same_bits(log_sum, other.log_sum) && same_bits(first, other.first) &&
           same_bits(second, other.second) && same_bits(temperature, other.temperature);
  }
};

template <class T>
const NtXentLossKernel<T>& nt_xent_kernel();  // of the current level

// Forward and backward. Every buffer is an allocation of its own, of exactly the size that the kernel asks for.
// `blocks` and `workers` replace the schedule's own choice where positive, as small inputs would run on one thread.
template <class T, class Parallel>
NtXentResult<T> run_nt_xent(const NtXentCase& c, const NtXentInputs<T>& inputs, const Parallel& parallel,
                            int64_t blocks = 0, int64_t workers = 0) {
  using C = Compute<T>;
  const NtXentLossKernel<T>& kernel = nt_xent_kernel<T>();
  const auto sizes = kernel.sizes(c.pairs, c.d);
  NtXentSchedule schedule(sizes.tiles, 1);
  if (blocks > 0) schedule.blocks = blocks;
  if (workers > 0) schedule.workers = workers;
  NtXentResult<T> result{poisoned<C>(c.anchors()), poisoned<C>(2 * c.pairs), poisoned<T>(c.pairs * c.d),
                         poisoned<T>(c.pairs * c.d), poisoned<C>(1)};
  for (const bool backward : {false, true}) {
    auto panels = poisoned<C>(sizes.panels), gradient = poisoned<C>(sizes.gradient);
    auto inverse = poisoned<C>(sizes.anchors), factors = poisoned<C>(sizes.anchors);
    auto maxima = poisoned<C>(sizes.anchors), weights = poisoned<C>(sizes.anchors);
    auto scaled_weights = poisoned<C>(sizes.anchors);
    auto sums = poisoned<double>(sizes.anchors), slopes = poisoned<double>(sizes.anchors);
    auto workspace = poisoned<C>(schedule.workers * sizes.workspace);
    const NtXentLoss<T> problem{.first = inputs.first.data(),
                                .second = inputs.second.data(),
                                .pairs = c.pairs,
                                .d = c.d,
                                .inverse_temperature = C(1 / c.temperature),
                                .cross_view = c.cross_view,
                                .both = c.both,
                                .normalize = c.normalize,
                                .running = c.running(),
                                .panels = panels.data(),
                                .inverse = inverse.data(),
                                .factors = factors.data(),
                                .sums = sums.data(),
                                .slopes = backward && c.temperature_grad ? slopes.data() : nullptr,
                                .maxima = maxima.data(),
                                .weights = weights.data(),
                                .scaled_weights = scaled_weights.data(),
                                .gradient = backward ? gradient.data() : nullptr};
    const NtXentPasses<T, Parallel> passes{kernel, problem, schedule, workspace.data(), sizes.workspace, parallel};
    if (backward)
      result.temperature[0] = C(
          passes.backward(inputs.losses_grad.data(), result.log_sum.data(), result.first.data(), result.second.data()));
    else
      passes.forward(result.losses.data(), result.log_sum.data());
  }
  result.log_sum.resize(c.anchors());  // of rows that are no anchors it means nothing
  return result;
}

// Eq. 6 and its derivative in double precision. log_sum is in base 2, as the kernel's; -inf without negatives.
struct NtXentExact {
  std::vector<double> losses, log_sum, first, second, temperature;
  double largest_score = 0;
  double steepest = 1;   // 1 / norm of the shortest row: what an error of the unit row's gradient is multiplied by
  double magnitude = 1;  // of the terms that the temperature's gradient sums, of both signs
  double pull = 0;       // the same of a unit row's gradient, for the row where it is largest
};

template <class T>
NtXentExact nt_xent_term_by_term(const NtXentCase& c, const NtXentInputs<T>& inputs);

// `ours` against `exact`. A score's rounding is an error of the exponent, so relative in every result.
template <class T>
void check_nt_xent(const NtXentResult<T>& ours, const NtXentExact& exact, const std::string& what) {
  const double tolerance = 8 * ELEMENT<Compute<T>>.epsilon * std::max(1.0, exact.largest_score);
  // The gradients' last rounding, and that of G to bfloat16 at the level that multiplies such matrices.
  const double last = sizeof(T) == 2 ? ELEMENT<T>.epsilon / 2 : 0;
  const double rounded = last + (std::is_same_v<T, BFloat16> ? last * exact.pull * exact.steepest : 0);
  check_close(ours.losses, exact.losses, tolerance, what + "losses");
  check_close(ours.log_sum, exact.log_sum, tolerance, what + "log_sum");
  check_close(ours.first, exact.first, tolerance * exact.steepest + rounded, what + "gradient of first");
  check_close(ours.second, exact.second, tolerance * exact.steepest + rounded, what + "gradient of second");
  check_close(ours.temperature, exact.temperature, tolerance * exact.magnitude, what + "gradient of the temperature");
}

}  // namespace cmi_fast::testing
