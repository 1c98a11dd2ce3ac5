#include "interest_softmax.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(InterestSoftmaxLossKernels, interest_softmax_loss)

namespace testing {

std::string InterestSoftmaxCase::name() const {
  return std::to_string(users) + " users, m = " + std::to_string(m) + ", " + std::to_string(count) +
         " candidates, d = " + std::to_string(d) + (options ? ", all options: " : ": ");
}

template <>
const InterestSoftmaxLossKernel<float>& interest_softmax_kernel<float>() {
  return CMI_FAST_KERNEL(InterestSoftmaxLossKernels, interest_softmax_loss).float32;
}

template <>
const InterestSoftmaxLossKernel<double>& interest_softmax_kernel<double>() {
  return CMI_FAST_KERNEL(InterestSoftmaxLossKernels, interest_softmax_loss).float64;
}

namespace {

// Sums, and the sums of their terms' magnitudes, which rounding errors are relative to.
struct Sums {
  std::vector<double> value, magnitude;

  explicit Sums(int64_t size) : value(size), magnitude(size) {}
  void add(int64_t i, double term) {
    value[i] += term;
    magnitude[i] += std::abs(term);
  }
  double largest() const {
    double largest = 1;
    for (const double x : magnitude) largest = std::max(largest, x);
    return largest;
  }
};

// The score of the user's best interest for a candidate, and which that is.
struct Score {
  double value;
  int64_t best;
};

template <class T>
Score score(const InterestSoftmaxCase& c, const InterestSoftmaxInputs<T>& inputs, int64_t user, int64_t candidate) {
  Score found{-std::numeric_limits<double>::infinity(), 0};
  for (int64_t k = 0; k < c.m; ++k) {
    double sum = 0;
    for (int64_t j = 0; j < c.d; ++j) {
      const double general = c.options ? to_double(inputs.general[user * c.d + j]) : 0;
      sum += (to_double(inputs.interests[(user * c.m + k) * c.d + j]) / c.temperature + general) *
             to_double(inputs.candidates[candidate * c.d + j]);
    }
    if (sum > found.value) found = {sum, k};
  }
  if (c.options) found.value += to_double(inputs.bias[candidate]);
  return found;
}

}  // namespace

template <class T>
void check_interest_softmax(const InterestSoftmaxResult<T>& ours, const InterestSoftmaxCase& c,
                            const InterestSoftmaxInputs<T>& inputs, const std::string& what) {
  const int64_t d = c.d;
  Sums losses(c.users), interests(c.users * c.m * d), candidates(c.count * d), general(c.users * d), bias(c.count);
  Sums temperature(1);
  double largest_score = 1;
  for (int64_t b = 0; b < c.users; ++b) {
    const int64_t target = inputs.targets[b];
    std::vector<Score> scores(c.count);
    std::vector<double> shares(c.count);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t i = 0; i < c.count; ++i) {
      scores[i] = score(c, inputs, b, i);
      largest_score = std::max(largest_score, std::abs(scores[i].value));
      const bool removed = c.options && (inputs.exclude[b * c.count + i] || inputs.ids[i] == inputs.ids[target]);
      if (removed && i != target) scores[i].value = -std::numeric_limits<double>::infinity();
      top = std::max(top, scores[i].value);
    }
    for (int64_t i = 0; i < c.count; ++i) sum += shares[i] = std::exp(scores[i].value - top);
    losses.add(b, std::log(sum) + top - scores[target].value);
    for (int64_t i = 0; i < c.count; ++i) {
      const double g = inputs.losses_grad[b] * (shares[i] / sum - (i == target));
      const int64_t row = (b * c.m + scores[i].best) * d;
      bias.add(i, g);
      for (int64_t j = 0; j < d; ++j) {
        const double u = to_double(inputs.interests[row + j]), v = to_double(inputs.candidates[i * d + j]);
        interests.add(row + j, g * v / c.temperature);
        general.add(b * d + j, g * v);
        candidates.add(i * d + j, g * (u / c.temperature + (c.options ? to_double(inputs.general[b * d + j]) : 0)));
        temperature.add(0, -g * u * v / c.temperature / c.temperature);
      }
    }
  }
  // A score's rounding is an error of the exponent, so relative in every result.
  const double tolerance = 8 * ELEMENT<Compute<T>>.epsilon * largest_score;
  const double last = sizeof(T) == 2 ? ELEMENT<T>.epsilon / 2 : 0;  // a gradient's last rounding
  const auto close = [&](const auto& found, const Sums& exact, const char* name) {
    check_close(found, exact.value, tolerance * exact.largest() + last, what + name);
  };
  check_close(ours.losses, losses.value, tolerance, what + "losses");
  close(ours.interests, interests, "gradient of interests");
  close(ours.candidates, candidates, "gradient of candidates");
  if (c.options) close(ours.general, general, "gradient of general");
  if (c.options) close(ours.bias, bias, "gradient of bias");
  const double error = std::abs(ours.temperature - temperature.value[0]);
  check(error <= tolerance * temperature.largest(), what + "gradient of the temperature");
}

template void check_interest_softmax(const InterestSoftmaxResult<float>&, const InterestSoftmaxCase&,
                                     const InterestSoftmaxInputs<float>&, const std::string&);
template void check_interest_softmax(const InterestSoftmaxResult<double>&, const InterestSoftmaxCase&,
                                     const InterestSoftmaxInputs<double>&, const std::string&);
template void check_interest_softmax(const InterestSoftmaxResult<BFloat16>&, const InterestSoftmaxCase&,
                                     const InterestSoftmaxInputs<BFloat16>&, const std::string&);
template void check_interest_softmax(const InterestSoftmaxResult<Half>&, const InterestSoftmaxCase&,
                                     const InterestSoftmaxInputs<Half>&, const std::string&);

}  // namespace testing
}  // namespace cmi_fast
