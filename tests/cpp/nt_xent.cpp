#include "nt_xent.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(NtXentLossKernels, nt_xent_loss)

namespace testing {

std::string NtXentCase::name() const {
  return std::to_string(pairs) + " pairs, d = " + std::to_string(d) + ", t = " + std::to_string(temperature) +
         (cross_view ? ", cross_view" : ", all") + (both ? ", both" : ", first") + (normalize ? "" : ", dot products") +
         ": ";
}

template <>
const NtXentLossKernel<float>& nt_xent_kernel<float>() {
  return CMI_FAST_KERNEL(NtXentLossKernels, nt_xent_loss).float32;
}

template <>
const NtXentLossKernel<double>& nt_xent_kernel<double>() {
  return CMI_FAST_KERNEL(NtXentLossKernels, nt_xent_loss).float64;
}

template <>
const NtXentLossKernel<BFloat16>& nt_xent_kernel<BFloat16>() {
  return CMI_FAST_KERNEL(NtXentLossKernels, nt_xent_loss).bfloat16;
}

template <>
const NtXentLossKernel<Half>& nt_xent_kernel<Half>() {
  return CMI_FAST_KERNEL(NtXentLossKernels, nt_xent_loss).float16;
}

namespace {

// The 2 pairs rows in double precision, unit if normalised, and their norms (1 if not).
struct Rows {
  std::vector<double> z, norm;

  template <class T>
  Rows(const NtXentCase& c, const NtXentInputs<T>& inputs) : z(2 * c.pairs * c.d), norm(2 * c.pairs, 1) {
    for (int64_t i = 0; i < 2 * c.pairs; ++i) {
      const T* row = i < c.pairs ? &inputs.first[i * c.d] : &inputs.second[(i - c.pairs) * c.d];
      double square = 0;
      for (int64_t j = 0; j < c.d; ++j) square += to_double(row[j]) * to_double(row[j]);
      if (c.normalize) norm[i] = std::sqrt(square);
      for (int64_t j = 0; j < c.d; ++j) z[i * c.d + j] = norm[i] > 0 ? to_double(row[j]) / norm[i] : 0;
    }
  }
};

double dot(const double* a, const double* b, int64_t d) {
  double sum = 0;
  for (int64_t j = 0; j < d; ++j) sum += a[j] * b[j];
  return sum;
}

}  // namespace

template <class T>
NtXentExact nt_xent_term_by_term(const NtXentCase& c, const NtXentInputs<T>& inputs) {
  const int64_t n = 2 * c.pairs, d = c.d;
  const double infinity = std::numeric_limits<double>::infinity();
  const Rows rows(c, inputs);
  NtXentExact exact{std::vector<double>(c.anchors()), std::vector<double>(c.anchors()),
                    std::vector<double>(c.pairs * d), std::vector<double>(c.pairs * d), std::vector<double>(1)};
  std::vector<double> gradient(n * d), score(n), pull(n);
  for (int64_t i = 0; i < c.anchors(); ++i) {
    const double* anchor = &rows.z[i * d];
    const int64_t positive = (i + c.pairs) % n;
    const auto negative = [&](int64_t j) {
      return j != i && j != positive && !(c.cross_view && (i < c.pairs) == (j < c.pairs));
    };
    double top = -infinity, sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      score[j] = dot(anchor, &rows.z[j * d], d) / c.temperature;
      exact.largest_score = std::max(exact.largest_score, std::abs(score[j]));
      if (negative(j)) top = std::max(top, score[j]);
    }
    for (int64_t j = 0; j < n; ++j)
      if (negative(j)) sum += std::exp(score[j] - top);
    const double log_sum = top + std::log(sum), margin = log_sum - score[positive];
    const bool alone = sum == 0;  // no negatives: the loss is 0
    exact.losses[i] = alone ? 0 : std::max(margin, 0.0) + std::log1p(std::exp(-std::abs(margin)));
    exact.log_sum[i] = alone ? -infinity : log_sum / std::log(2);
    const double weight = alone ? 0 : inputs.losses_grad[i] / (1 + std::exp(-margin));
    for (int64_t j = 0; j < n && !alone; ++j) {
      if (j == i || (j != positive && !negative(j))) continue;
      const double slope = j == positive ? -weight : weight * std::exp(score[j] - log_sum);  // dl / ds_ij
      for (int64_t k = 0; k < d; ++k) {
        gradient[i * d + k] += slope * rows.z[j * d + k] / c.temperature;
        gradient[j * d + k] += slope * anchor[k] / c.temperature;
      }
      pull[i] += std::abs(slope) / c.temperature;
      pull[j] += std::abs(slope) / c.temperature;
      exact.temperature[0] -= slope * score[j] / c.temperature;
      exact.magnitude += std::abs(slope * score[j] / c.temperature);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    exact.pull = std::max(exact.pull, pull[i]);
    if (rows.norm[i] > 0) exact.steepest = std::max(exact.steepest, 1 / rows.norm[i]);
    const double *z = &rows.z[i * d], *dz = &gradient[i * d];
    const double radial = c.normalize ? dot(z, dz, d) : 0;
    double* to = i < c.pairs ? &exact.first[i * d] : &exact.second[(i - c.pairs) * d];
    for (int64_t k = 0; k < d; ++k) to[k] = rows.norm[i] > 0 ? (dz[k] - z[k] * radial) / rows.norm[i] : 0;
  }
  return exact;
}

template NtXentExact nt_xent_term_by_term(const NtXentCase&, const NtXentInputs<float>&);
template NtXentExact nt_xent_term_by_term(const NtXentCase&, const NtXentInputs<double>&);
template NtXentExact nt_xent_term_by_term(const NtXentCase&, const NtXentInputs<BFloat16>&);
template NtXentExact nt_xent_term_by_term(const NtXentCase&, const NtXentInputs<Half>&);

}  // namespace testing
}  // namespace cmi_fast
