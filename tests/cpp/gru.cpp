#include "gru.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(GruKernels, gru)

namespace testing {

std::vector<int64_t> GruCase::offsets() const {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

std::string GruCase::name() const {
  return std::to_string(batch()) + (capacity ? " padded" : " jagged") + " sequences, d = " + std::to_string(d) +
         ", hidden = " + std::to_string(hidden) + (bias ? "" : ", no bias") +
         (table_rows ? ", table of " + std::to_string(table_rows) : "") + (normalize ? ", unit" : "") +
         (stream ? ", streaming: " : ": ");
}

template <>
const GruKernel<float>& gru_kernel<float>() {
  return CMI_FAST_KERNEL(GruKernels, gru).float32;
}

template <>
const GruKernel<double>& gru_kernel<double>() {
  return CMI_FAST_KERNEL(GruKernels, gru).float64;
}

namespace {

using Numbers = std::vector<double>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Parameters {
  int64_t d, hidden;
  Numbers weight_ih, weight_hh, bias_ih, bias_hh;

  // Of gate r, z or n, unit j: what x, or h, contributes.
  double of_x(int64_t gate, int64_t j, const double* x) const {
    const int64_t row = gate * hidden + j;
    double sum = bias_ih.empty() ? 0 : bias_ih[row];
    for (int64_t k = 0; k < d; ++k) sum += weight_ih[row * d + k] * x[k];
    return sum;
  }
  double of_h(int64_t gate, int64_t j, const double* h) const {
    const int64_t row = gate * hidden + j;
    double sum = bias_hh.empty() ? 0 : bias_hh[row];
    for (int64_t k = 0; k < hidden; ++k) sum += weight_hh[row * hidden + k] * h[k];
    return sum;
  }
};

struct Step {
  Numbers before, r, z, n, q;
};

Step step(const Parameters& p, const double* x, Numbers& h) {
  Step s{h, {}, {}, {}, {}};
  for (int64_t j = 0; j < p.hidden; ++j) {
    s.r.push_back(sigmoid(p.of_x(0, j, x) + p.of_h(0, j, s.before.data())));
    s.z.push_back(sigmoid(p.of_x(1, j, x) + p.of_h(1, j, s.before.data())));
    s.q.push_back(p.of_h(2, j, s.before.data()));
    s.n.push_back(std::tanh(p.of_x(2, j, x) + s.r[j] * s.q[j]));
    h[j] = (1 - s.z[j]) * s.n[j] + s.z[j] * s.before[j];
  }
  return s;
}

// From dh of the state after the step to that of the state before it; adds to the other gradients.
void step_back(const Parameters& p, const Step& s, const double* x, Numbers& dh, double* dx, GruExact& exact) {
  auto& [weight_ih, weight_hh, bias_ih, bias_hh] = exact.parameters;
  Numbers before(p.hidden);
  for (int64_t j = 0; j < p.hidden; ++j) {
    const double dn = dh[j] * (1 - s.z[j]) * (1 - s.n[j] * s.n[j]), dq = dn * s.r[j];
    const double dr = dn * s.q[j] * s.r[j] * (1 - s.r[j]);
    const double dz = dh[j] * (s.before[j] - s.n[j]) * s.z[j] * (1 - s.z[j]);
    const double to_x[] = {dr, dz, dn}, to_h[] = {dr, dz, dq};
    before[j] += dh[j] * s.z[j];
    for (int64_t gate = 0; gate < 3; ++gate) {
      const int64_t row = gate * p.hidden + j;
      for (int64_t k = 0; k < p.d; ++k) {
        dx[k] += to_x[gate] * p.weight_ih[row * p.d + k];
        weight_ih[row * p.d + k] += to_x[gate] * x[k];
      }
      for (int64_t k = 0; k < p.hidden; ++k) {
        before[k] += to_h[gate] * p.weight_hh[row * p.hidden + k];
        weight_hh[row * p.hidden + k] += to_h[gate] * s.before[k];
      }
      if (bias_ih.empty()) continue;
      bias_ih[row] += to_x[gate];
      bias_hh[row] += to_h[gate];
    }
  }
  dh = before;
}

struct Item {
  Numbers x;
  double norm;  // that x was divided by
};

Item item(const double* row, const GruCase& c) {
  Item item{Numbers(row, row + c.d), 1};
  if (!c.normalize) return item;
  double square = 0;
  for (const double x : item.x) square += x * x;
  item.norm = std::sqrt(square);
  for (double& x : item.x) x /= item.norm;
  return item;
}

// To the gradient of the row, from that of the item.
void add_gradient(const Item& item, const Numbers& dx, const GruCase& c, double* gradient) {
  double radial = 0;
  for (int64_t k = 0; c.normalize && k < c.d; ++k) radial += item.x[k] * dx[k];
  for (int64_t k = 0; k < c.d; ++k) gradient[k] += (dx[k] - item.x[k] * radial) / item.norm;
}

template <class S>
Numbers wide(const std::vector<S>& numbers) {
  Numbers result;
  for (const S x : numbers) result.push_back(to_double(x));
  return result;
}

}  // namespace

template <class S>
GruExact gru_item_by_item(const GruCase& c, const GruInputs<S>& inputs) {
  const auto& given = inputs.parameters;
  const Parameters p{c.d, c.hidden, wide(given[0]), wide(given[1]), wide(given[2]), wide(given[3])};
  const Numbers stored = wide(inputs.items), cotangent = wide(inputs.last_grad);
  GruExact exact;
  exact.items.resize(stored.size());
  for (int i = 0; i < 4; ++i) exact.parameters[i].resize(given[i].size());
  for (int64_t b = 0; b < c.batch(); ++b) {
    Numbers h(c.hidden);
    std::vector<Step> steps;
    std::vector<Item> items;
    for (int64_t t = 0; t < c.lengths[b]; ++t) {
      const int64_t row = c.first(b) + t;
      items.push_back(item(&stored[(c.table_rows ? inputs.ids[row] : row) * c.d], c));
      steps.push_back(step(p, items[t].x.data(), h));
    }
    exact.last.insert(exact.last.end(), h.begin(), h.end());
    Numbers dh(&cotangent[b * c.hidden], &cotangent[b * c.hidden] + c.hidden);
    for (int64_t t = c.lengths[b]; t-- > 0;) {
      const int64_t row = c.first(b) + t;
      Numbers dx(c.d);
      step_back(p, steps[t], items[t].x.data(), dh, dx.data(), exact);
      add_gradient(items[t], dx, c, &exact.items[(c.table_rows ? inputs.ids[row] : row) * c.d]);
    }
  }
  return exact;
}

template GruExact gru_item_by_item(const GruCase&, const GruInputs<float>&);
template GruExact gru_item_by_item(const GruCase&, const GruInputs<double>&);
template GruExact gru_item_by_item(const GruCase&, const GruInputs<BFloat16>&);
template GruExact gru_item_by_item(const GruCase&, const GruInputs<Half>&);

}  // namespace testing
}  // namespace cmi_fast
