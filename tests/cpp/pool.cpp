#include "pool.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool)
CMI_FAST_DECLARE_KERNEL(TableGradientKernels, table_gradient)

namespace testing {

std::vector<int64_t> PoolCase::offsets() const {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

std::string PoolCase::name() const {
  return std::to_string(batch()) + (capacity ? " padded" : " jagged") + " sequences, m = " + std::to_string(m) +
         ", d = " + std::to_string(d) + ", " + std::to_string(view_count) + " views, table of " +
         std::to_string(table_rows) + (stream ? ", streaming: " : ": ");
}

template <>
const SoftAssignmentPoolKernel<float>& pool_kernel<float>() {
  return CMI_FAST_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool).float32;
}

template <>
const SoftAssignmentPoolKernel<double>& pool_kernel<double>() {
  return CMI_FAST_KERNEL(SoftAssignmentPoolKernels, soft_assignment_pool).float64;
}

template <>
void run_table_gradient<float>(const TableGradient<float>& gradient, int64_t begin, int64_t end) {
  CMI_FAST_KERNEL(TableGradientKernels, table_gradient).float32(gradient, begin, end);
}

template <>
void run_table_gradient<double>(const TableGradient<double>& gradient, int64_t begin, int64_t end) {
  CMI_FAST_KERNEL(TableGradientKernels, table_gradient).float64(gradient, begin, end);
}

namespace {

struct UnitRow {
  std::vector<double> unit;
  double norm = 0;

  template <class S>
  UnitRow(const S* row, int64_t d) {
    for (int64_t j = 0; j < d; ++j) unit.push_back(to_double(row[j]));
    for (const double x : unit) norm += x * x;
    norm = std::sqrt(norm);
    for (double& x : unit) x /= norm;
  }

  double dot(const double* other) const {
    double sum = 0;
    for (size_t j = 0; j < unit.size(); ++j) sum += unit[j] * other[j];
    return sum;
  }

  // Adds the gradient with respect to the row, from that with respect to the unit row.
  void add_gradient(const std::vector<double>& gradient, double* to) const {
    const double radial = dot(gradient.data());
    for (size_t j = 0; j < unit.size(); ++j) to[j] += (gradient[j] - unit[j] * radial) / norm;
  }
};

}  // namespace

template <class S>
PoolExact pool_item_by_item(const PoolCase& c, const PoolInputs<S>& inputs) {
  const int64_t m = c.m, d = c.d, views = std::max<int64_t>(c.view_count, 1);
  PoolExact exact{std::vector<double>(c.pooled_size()), std::vector<double>(c.item_rows() * d),
                  std::vector<double>(m * d), std::vector<double>(1)};
  std::vector<UnitRow> categories;
  for (int64_t k = 0; k < m; ++k) categories.emplace_back(&inputs.categories[k * d], d);
  std::vector<std::vector<double>> category_gradients(m, std::vector<double>(d));

  const auto add = [&](int64_t interests, int64_t item) {  // of this view of this sequence
    const UnitRow v(&inputs.items[item * d], d);
    exact.steepest = std::max(exact.steepest, 1 / v.norm);
    std::vector<double> cotangent(m * d), weight(m), score(m), gain(m), gradient(d);
    for (int64_t i = 0; i < m * d; ++i) cotangent[i] = to_double(inputs.pooled_grad[interests * m * d + i]);
    double sum = 0, mean = 0;
    for (int64_t k = 0; k < m; ++k) {
      score[k] = v.dot(categories[k].unit.data());
      sum += weight[k] = std::exp(score[k] / c.temperature);
    }
    for (int64_t k = 0; k < m; ++k) {
      weight[k] /= sum;
      gain[k] = v.dot(&cotangent[k * d]);
      mean += weight[k] * gain[k];
    }
    for (int64_t k = 0; k < m; ++k) {
      const double slope = weight[k] * (gain[k] - mean) / c.temperature;  // dl / ds_ik
      for (int64_t j = 0; j < d; ++j) {
        exact.pooled[(interests * m + k) * d + j] += weight[k] * v.unit[j];
        gradient[j] += weight[k] * cotangent[k * d + j] + slope * categories[k].unit[j];
        category_gradients[k][j] += slope * v.unit[j];
      }
      exact.temperature[0] -= slope * score[k] / c.temperature;
      exact.magnitude += std::abs(slope * score[k] / c.temperature);
    }
    v.add_gradient(gradient, &exact.items[item * d]);
  };
  for (int64_t view = 0; view < views; ++view)
    for (int64_t b = 0; b < c.batch(); ++b)
      for (int64_t row = c.first(b); row < c.first(b) + c.lengths[b]; ++row)
        if (inputs.in_view(c, view, row)) add(view * c.batch() + b, c.table_rows ? inputs.ids[row] : row);

  for (int64_t k = 0; k < m; ++k) {
    categories[k].add_gradient(category_gradients[k], &exact.categories[k * d]);
    exact.steepest = std::max(exact.steepest, 1 / categories[k].norm);
  }
  return exact;
}

template PoolExact pool_item_by_item(const PoolCase&, const PoolInputs<float>&);
template PoolExact pool_item_by_item(const PoolCase&, const PoolInputs<double>&);
template PoolExact pool_item_by_item(const PoolCase&, const PoolInputs<BFloat16>&);
template PoolExact pool_item_by_item(const PoolCase&, const PoolInputs<Half>&);

}  // namespace testing
}  // namespace cmi_fast
