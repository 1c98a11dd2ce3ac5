// Self-attentive pooling against its equations, item by item, at every ISA level, around every edge of tiles and
// vectors.
#include "checking.h"
#include "cpu/kernels/self_attentive_pool.h"
#include "cpu/partition.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(SelfAttentivePoolKernels, self_attentive_pool)

namespace testing {
namespace {

struct Case {
  std::vector<int64_t> lengths;
  int64_t capacity;  // 0: jagged
  int64_t interests, hidden, d;
  bool bias = true, positions = true, stream = false;

  int64_t batch() const { return lengths.size(); }
  int64_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  int64_t places() const { return positions ? longest() + 2 : 0; }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> offsets{0};
    for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
    return offsets;
  }
  int64_t first(int64_t b) const { return capacity ? b * capacity : offsets()[b]; }
  int64_t rows() const { return capacity ? batch() * capacity : offsets().back(); }
  std::string name() const {
    return std::to_string(batch()) + (capacity ? " padded" : " jagged") + ", K = " + std::to_string(interests) +
           ", h = " + std::to_string(hidden) + ", d = " + std::to_string(d) + (bias ? ", bias" : "") +
           (positions ? ", positions" : "") + (stream ? ", streaming: " : ": ");
  }
};

template <class T>
struct Parameters {
  std::vector<T> weight, queries, bias, positions;
};

template <class S>
struct Inputs {
  std::vector<S> items, pooled_grad;
  Parameters<Compute<S>> parameters;

  explicit Inputs(const Case& c)
      : items(poisoned<S>(c.rows() * c.d)),  // the padding stays NaN
        pooled_grad(random_numbers<S>(c.batch() * c.interests * c.d, 1)) {
    using T = Compute<S>;
    parameters = {random_numbers<T>(c.hidden * c.d, 2), random_numbers<T>(c.interests * c.hidden, 3),
                  random_numbers<T>(c.bias ? c.hidden : 0, 4), random_numbers<T>(c.places() * c.d, 5)};
    for (T& x : parameters.weight) x *= T(std::sqrt(1.0 / c.d));
    for (T& x : parameters.queries) x *= T(std::sqrt(4.0 / c.hidden));
    const auto numbers = random_numbers<S>(c.rows() * c.d, 6);
    for (int64_t b = 0; b < c.batch(); ++b)
      std::copy_n(&numbers[c.first(b) * c.d], c.lengths[b] * c.d, &items[c.first(b) * c.d]);
  }
};

template <class R, class T>
struct Result {
  std::vector<R> pooled, items;
  Parameters<T> parameters;
};

template <class T>
const SelfAttentivePoolKernel<T>& kernel() {
  const SelfAttentivePoolKernels& all = CMI_FAST_KERNEL(SelfAttentivePoolKernels, self_attentive_pool);
  if constexpr (sizeof(T) == 4)
    return all.float32;
  else
    return all.float64;
}

// Empty gradients are those not wanted.
template <class S, class Parallel>
Result<S, Compute<S>> run(const Case& c, const Inputs<S>& inputs, const Parallel& parallel, int64_t workers,
                          bool parameters = true) {
  using T = Compute<S>;
  const auto& loops = kernel<T>();
  const auto pointer = [](auto& values) { return values.empty() ? nullptr : values.data(); };
  const SelfAttentivePoolSizes sizes{c.interests, c.hidden, c.d, c.places(), c.longest()};
  const auto& given = inputs.parameters;
  std::vector<T> packed = poisoned<T>(loops.packed_size(sizes));
  loops.pack({given.weight.data(), given.queries.data(), pointer(given.bias), pointer(given.positions)}, sizes,
             packed.data());
  const std::vector<int64_t> offsets = c.offsets();
  const SelfAttentivePool<T> p{
      {c.batch(), c.capacity, c.capacity ? c.lengths.data() : nullptr, c.capacity ? nullptr : offsets.data()},
      {inputs.items.data(), STORED<S>},
      sizes,
      packed.data()};
  const auto workspace = [&] { return poisoned<T>(loops.workspace_size(sizes)); };
  auto pooled = poisoned<S>(c.batch() * c.interests * c.d);
  auto attention = poisoned<T>(c.rows() * c.interests);
  const std::vector<int64_t> boundaries = partition(p.sequences);
  const int64_t parts = boundaries.size() - 1, size = parameters ? loops.gradient_size(sizes) : 0;
  for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
    loops.forward(p, boundaries[part], boundaries[part + 1], {pooled.data(), STORED<S>}, attention.data(),
                  workspace().data());
  });
  const auto items = aligned<S>(c.rows() * c.d);
  auto sums = poisoned<T>(parts * size);
  for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
    loops.backward(p, boundaries[part], boundaries[part + 1],
                   {{inputs.pooled_grad.data(), STORED<S>},
                    attention.data(),
                    {items.get(), STORED<S>},
                    c.stream,
                    parameters ? sums.data() + part * size : nullptr},
                   workspace().data());
  });
  Parameters<T> gradients;
  if (parameters) {
    for (int64_t i = size; i < parts * size; ++i) sums[i % size] += sums[i];
    gradients = {poisoned<T>(given.weight.size()), poisoned<T>(given.queries.size()), poisoned<T>(given.bias.size()),
                 poisoned<T>(given.positions.size())};
    loops.unpack_gradients(
        sums.data(), sizes,
        {gradients.weight.data(), gradients.queries.data(), pointer(gradients.bias), pointer(gradients.positions)});
  }
  return {pooled, std::vector<S>(items.get(), items.get() + c.rows() * c.d), gradients};
}

template <class S>
Result<double, double> item_by_item(const Case& c, const Inputs<S>& inputs) {
  const int64_t K = c.interests, H = c.hidden, d = c.d;
  const auto& given = inputs.parameters;
  Result<double, double> exact{std::vector<double>(c.batch() * K * d),
                               std::vector<double>(c.rows() * d),
                               {std::vector<double>(H * d), std::vector<double>(K * H),
                                std::vector<double>(given.bias.size()), std::vector<double>(given.positions.size())}};
  for (int64_t b = 0; b < c.batch(); ++b) {
    const int64_t length = c.lengths[b], first = c.first(b);
    const auto x = [&](int64_t t, int64_t j) { return to_double(inputs.items[(first + t) * d + j]); };
    const auto key = [&](int64_t t, int64_t j) { return x(t, j) + (c.positions ? given.positions[t * d + j] : 0); };
    const auto U = [&](int64_t k, int64_t j) { return to_double(inputs.pooled_grad[(b * K + k) * d + j]); };
    std::vector<double> h(length * H), a(length * K), gain(length * K);
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t i = 0; i < H; ++i) {
        double sum = c.bias ? given.bias[i] : 0;
        for (int64_t j = 0; j < d; ++j) sum += given.weight[i * d + j] * key(t, j);
        h[t * H + i] = std::tanh(sum);
      }
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t i = 0; i < H; ++i) a[t * K + k] += given.queries[k * H + i] * h[t * H + i];
        for (int64_t j = 0; j < d; ++j) gain[t * K + k] += x(t, j) * U(k, j);
      }
    }
    for (int64_t k = 0; k < K; ++k) {
      double sum = 0, mean = 0;
      for (int64_t t = 0; t < length; ++t) sum += a[t * K + k] = std::exp(a[t * K + k]);
      for (int64_t t = 0; t < length; ++t) mean += (a[t * K + k] /= sum) * gain[t * K + k];
      for (int64_t t = 0; t < length; ++t) {
        const double score_gradient = a[t * K + k] * (gain[t * K + k] - mean);
        for (int64_t j = 0; j < d; ++j) {
          exact.pooled[(b * K + k) * d + j] += a[t * K + k] * x(t, j);
          exact.items[(first + t) * d + j] += a[t * K + k] * U(k, j);
        }
        for (int64_t i = 0; i < H; ++i) {
          exact.parameters.queries[k * H + i] += score_gradient * h[t * H + i];
          const double inner = score_gradient * given.queries[k * H + i] * (1 - h[t * H + i] * h[t * H + i]);
          if (c.bias) exact.parameters.bias[i] += inner;
          for (int64_t j = 0; j < d; ++j) {
            exact.parameters.weight[i * d + j] += inner * key(t, j);
            exact.items[(first + t) * d + j] += inner * given.weight[i * d + j];
            if (c.positions) exact.parameters.positions[t * d + j] += inner * given.weight[i * d + j];
          }
        }
      }
    }
  }
  return exact;
}

template <class S>
void test_case(const Case& c) {
  using T = Compute<S>;
  const Inputs<S> inputs(c);
  const auto exact = item_by_item(c, inputs);
  // A score sums h numbers, each the tanh of a sum of d; its error is that of the exponent.
  const double tolerance = 4 * (std::sqrt(double(c.hidden)) + std::sqrt(double(c.d))) * ELEMENT<T>.epsilon;
  const double rounded = sizeof(S) == 2 ? ELEMENT<S>.epsilon / 2 : 0;  // what is stored in a half type
  for_each_level([&](const std::string& level) {
    const std::string what = level + " " + ELEMENT<S>.name + " " + c.name();
    const auto ours = run(c, inputs, OneAfterAnother{}, 1);
    const auto same_parameters = [&](const Parameters<T>& other) {
      const Parameters<T>& mine = ours.parameters;
      return same_bits(mine.weight, other.weight) && same_bits(mine.queries, other.queries) &&
             same_bits(mine.bias, other.bias) && same_bits(mine.positions, other.positions);
    };
    check_close(ours.pooled, exact.pooled, tolerance + rounded, what + "pooled");
    check_close(ours.items, exact.items, tolerance + rounded, what + "gradient of the items");
    check_close(ours.parameters.weight, exact.parameters.weight, tolerance, what + "of the weight");
    check_close(ours.parameters.queries, exact.parameters.queries, tolerance, what + "of the queries");
    check_close(ours.parameters.bias, exact.parameters.bias, tolerance, what + "of the bias");
    check_close(ours.parameters.positions, exact.parameters.positions, tolerance, what + "of the positions");
    const auto items_alone = run(c, inputs, OneAfterAnother{}, 1, false), threaded = run(c, inputs, Threads{}, 3);
    check(same_bits(items_alone.items, ours.items), what + "without the parameters' gradients");
    check(same_bits(threaded.pooled, ours.pooled) && same_bits(threaded.items, ours.items) &&
              same_parameters(threaded.parameters),
          what + "three threads");
  });
}

// A tile has four rows. Empty sequences first, last and side by side.
template <class S>
void test_type() {
  const std::vector<int64_t> lengths{0, 1, 3, 4, 5, 0, 0, 15, 16, 17, 33, 0};
  for (const int64_t capacity : {0, 33, 36})
    for (const bool bias : {false, true})
      for (const bool positions : {false, true}) test_case<S>({lengths, capacity, 3, 7, 5, bias, positions});
  for (const int64_t interests : {1, 2, 4, 5, 8, 9, 17}) test_case<S>({{5, 17}, 17, interests, 9, 9});
  for (const int64_t hidden : {1, 8, 31, 32, 33, 63, 64, 65, 130}) test_case<S>({{5, 17}, 0, 4, hidden, 6});
  for (const int64_t d : {1, 3, 8, 15, 16, 17, 33, 65}) test_case<S>({{5, 17}, 0, 4, 12, d});
  test_case<S>({{0, 0}, 2, 3, 4, 4});
  test_case<S>({std::vector<int64_t>(300, 7), 9, 3, 4, 4});                                      // several parts
  if (STORED<S> == Element::computed) test_case<S>({{3, 0, 5}, 6, 2, 8, 32, true, true, true});  // half types never are
}

}  // namespace

void test_self_attentive_pool() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace testing
}  // namespace cmi_fast
