// The routing against its equations, vote by vote, at every ISA level, around every edge of blocks, vectors, sequences.
#include "checking.h"
#include "cpu/kernels/capsule_routing.h"
#include "cpu/partition.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(CapsuleRoutingKernels, capsule_routing)

namespace testing {
namespace {

struct Case {
  std::vector<int64_t> lengths;
  int64_t capacity;  // 0: jagged
  int64_t interests, d, e;
  bool by_place = false, own_maps = false;  // of each interest; by place they always are
  bool bias = false, logits = false, active = false;
  int64_t iterations = 3;
  bool stream = false;

  int64_t batch() const { return lengths.size(); }
  int64_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  int64_t places() const { return by_place ? std::max(longest(), capacity) + 1 : 1; }
  int64_t map_count() const { return by_place || own_maps ? interests : 1; }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> offsets{0};
    for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
    return offsets;
  }
  int64_t first(int64_t b) const { return capacity ? b * capacity : offsets()[b]; }
  int64_t rows() const { return capacity ? batch() * capacity : offsets().back(); }
  std::string name() const {
    return std::to_string(batch()) + (capacity ? " padded" : " jagged") + ", K = " + std::to_string(interests) +
           ", d = " + std::to_string(d) + ", e = " + std::to_string(e) + (by_place ? ", by place" : "") +
           (own_maps ? ", own maps" : "") + (bias ? ", bias" : "") + (logits ? ", logits" : "") +
           (active ? ", active" : "") + (stream ? ", streaming" : "") + ", " + std::to_string(iterations) +
           " iterations: ";
  }
};

template <class S>
struct Inputs {
  using T = Compute<S>;
  std::vector<S> items, interests_grad;
  std::vector<T> maps, bias, logits;
  std::vector<int64_t> active;

  explicit Inputs(const Case& c)
      : items(poisoned<S>(c.rows() * c.d)),  // the padding stays NaN
        interests_grad(random_numbers<S>(c.batch() * c.interests * c.e, 1)),
        maps(random_numbers<T>(c.places() * c.map_count() * c.e * c.d, 2)),
        bias(random_numbers<T>(c.e, 3)),
        logits(random_numbers<T>(c.rows() * c.interests, 4)) {
    for (T& x : maps) x *= T(std::sqrt(1.0 / c.d));
    const auto numbers = random_numbers<S>(c.rows() * c.d, 5);
    for (int64_t b = 0; b < c.batch(); ++b) {
      std::copy_n(&numbers[c.first(b) * c.d], c.lengths[b] * c.d, &items[c.first(b) * c.d]);
      active.push_back(c.active ? 1 + b % c.interests : c.interests);
    }
  }
};

// Of gradients every one, or those of the items alone.
template <class R, class T>
struct Result {
  std::vector<R> interests, items;
  std::vector<T> maps, bias;
};

template <class T>
const CapsuleRoutingKernelPair<T>& kernels() {
  const CapsuleRoutingKernels& all = CMI_FAST_KERNEL(CapsuleRoutingKernels, capsule_routing);
  if constexpr (sizeof(T) == 4)
    return all.float32;
  else
    return all.float64;
}

template <class S, class Parallel>
Result<S, Compute<S>> run(const Case& c, const Inputs<S>& inputs, const Parallel& parallel, int64_t workers,
                          bool parameters = true) {
  using T = Compute<S>;
  const auto& kernel = c.by_place ? kernels<T>().by_place : kernels<T>().everywhere;
  const std::vector<int64_t> offsets = c.offsets();
  CapsuleRouting<T> p{
      {c.batch(), c.capacity, c.capacity ? c.lengths.data() : nullptr, c.capacity ? nullptr : offsets.data()},
      c.longest(),
      {inputs.items.data(), STORED<S>},
      inputs.maps.data(),
      c.places(),
      c.map_count(),
      c.interests,
      c.d,
      c.e,
      c.bias ? inputs.bias.data() : nullptr,
      c.logits ? inputs.logits.data() : nullptr,
      c.active ? inputs.active.data() : nullptr,
      c.iterations,
      nullptr};
  std::vector<T> packed = poisoned<T>(kernel.packed_size(p));
  for (int64_t place = 0; place < c.places(); ++place)
    kernel.pack(p, place * c.map_count(), (place + 1) * c.map_count(), packed.data());
  p.packed = packed.data();
  const auto workspace = [&] { return poisoned<T>(kernel.workspace_size(p)); };

  const int64_t vectors = c.batch() * c.interests, map = c.map_count() * c.e * c.d;
  auto interests = poisoned<S>(vectors * c.e);
  auto weights = poisoned<T>(c.rows() * c.interests), sums = poisoned<T>(vectors * c.e),
       pooled = poisoned<T>(c.by_place ? 0 : vectors * c.d), cotangents = poisoned<T>(vectors * c.e);
  const std::vector<int64_t> boundaries = partition(p.sequences);
  const int64_t sequence_parts = boundaries.size() - 1;
  for_each_part(sequence_parts, workers, parallel, [&](int64_t part, int64_t) {
    kernel.forward(p, boundaries[part], boundaries[part + 1],
                   {{interests.data(), STORED<S>}, weights.data(), sums.data(), pooled.data()}, workspace().data());
    kernels<T>().cotangents(sums.data(), {inputs.interests_grad.data(), STORED<S>}, c.e, boundaries[part] * c.interests,
                            boundaries[part + 1] * c.interests, cotangents.data());
  });

  const int64_t parts = c.by_place ? c.places() : sequence_parts;
  const auto items = aligned<S>(c.rows() * c.d);
  auto maps = poisoned<T>(parameters ? parts * map : 0), bias = poisoned<T>(parameters && c.bias ? parts * c.e : 0);
  for_each_part(parts, workers, parallel, [&](int64_t part, int64_t) {
    const int64_t own = c.by_place ? 0 : part;  // places find their own
    const CapsuleRoutingGradients<T> gradients{weights.data(),
                                               pooled.data(),
                                               cotangents.data(),
                                               {items.get(), STORED<S>},
                                               c.stream,
                                               maps.empty() ? nullptr : maps.data() + own * map,
                                               bias.empty() ? nullptr : bias.data() + own * c.e};
    if (c.by_place)
      kernel.backward(p, part, part + 1, gradients, workspace().data());
    else
      kernel.backward(p, boundaries[part], boundaries[part + 1], gradients, workspace().data());
  });
  const auto add_parts = [&](std::vector<T>& partial, int64_t size) {
    for (size_t i = size; i < partial.size(); ++i) partial[i % size] += partial[i];
    if (!partial.empty()) partial.resize(size);
  };
  if (!c.by_place) add_parts(maps, map);
  add_parts(bias, c.e);
  return {interests, std::vector<S>(items.get(), items.get() + c.rows() * c.d), maps, bias};
}

template <class S>
Result<double, double> vote_by_vote(const Case& c, const Inputs<S>& inputs) {
  const int64_t K = c.interests, d = c.d, e = c.e;
  Result<double, double> exact{std::vector<double>(c.batch() * K * e), std::vector<double>(c.rows() * d),
                               std::vector<double>(inputs.maps.size()), std::vector<double>(c.bias ? e : 0)};
  const auto map_index = [&](int64_t t, int64_t k) {
    return ((c.by_place ? t : 0) * c.map_count() + (c.map_count() == 1 ? 0 : k)) * e * d;
  };
  for (int64_t b = 0; b < c.batch(); ++b) {
    const int64_t length = c.lengths[b], first = c.first(b);
    std::vector<double> votes(length * K * e), logits(length * K), weights(length * K), z(K * e);
    const auto x = [&](int64_t t, int64_t j) { return to_double(inputs.items[(first + t) * d + j]); };
    for (int64_t t = 0; t < length; ++t)
      for (int64_t k = 0; k < K; ++k) {
        if (c.logits) logits[t * K + k] = inputs.logits[(first + t) * K + k];
        for (int64_t i = 0; i < e; ++i) {
          double& vote = votes[(t * K + k) * e + i];
          if (c.bias) vote = inputs.bias[i];
          for (int64_t j = 0; j < d; ++j) vote += inputs.maps[map_index(t, k) + i * d + j] * x(t, j);
        }
      }
    const auto norm = [&](int64_t k) {
      double q = 0;
      for (int64_t i = 0; i < e; ++i) q += z[k * e + i] * z[k * e + i];
      return q;
    };
    const auto squashing = [](double q) { return q / (1 + q) / std::sqrt(q + 1e-9); };
    for (int64_t iteration = 0; iteration < c.iterations; ++iteration) {
      for (int64_t t = 0; t < length; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) {
          for (int64_t i = 0; iteration > 0 && i < e; ++i)
            logits[t * K + k] += squashing(norm(k)) * z[k * e + i] * votes[(t * K + k) * e + i];
          sum += weights[t * K + k] = k < inputs.active[b] ? std::exp(logits[t * K + k]) : 0;
        }
        for (int64_t k = 0; k < K; ++k) weights[t * K + k] /= sum;
      }
      std::fill(z.begin(), z.end(), 0);
      for (int64_t t = 0; t < length; ++t)
        for (int64_t i = 0; i < K * e; ++i) z[i] += weights[t * K + i / e] * votes[t * K * e + i];
    }
    for (int64_t k = 0; k < K; ++k) {
      const double q = norm(k), f = squashing(q), step = 1e-4 * (1 + q);
      const double slope = q == 0 ? 0 : (1 / (q * (1 + q)) - 1 / (2 * (q + 1e-9))) * f;  // f'(q)
      check(q < 0.1 || std::abs(slope - (squashing(q + step) - squashing(q - step)) / (2 * step)) < 1e-3 * (1 + f),
            "the slope of the squashing");
      const int64_t row = (b * K + k) * e;
      double along = 0;
      for (int64_t i = 0; i < e; ++i) along += z[k * e + i] * to_double(inputs.interests_grad[row + i]);
      for (int64_t i = 0; i < e; ++i) {
        exact.interests[row + i] = f * z[k * e + i];
        const double cotangent = f * to_double(inputs.interests_grad[row + i]) + 2 * slope * along * z[k * e + i];
        for (int64_t t = 0; t < length; ++t) {
          const double vote_gradient = weights[t * K + k] * cotangent;
          if (c.bias) exact.bias[i] += vote_gradient;
          for (int64_t j = 0; j < d; ++j) {
            const int64_t entry = map_index(t, k) + i * d + j;
            exact.maps[entry] += vote_gradient * x(t, j);
            exact.items[(first + t) * d + j] += vote_gradient * inputs.maps[entry];
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
  const auto exact = vote_by_vote(c, inputs);
  // Logits of magnitude |u| sum products of e numbers each iteration; their errors are those of the exponents.
  const double tolerance = 4 * c.iterations * std::sqrt(double(c.e)) * std::sqrt(double(c.d)) * ELEMENT<T>.epsilon;
  const double rounded = sizeof(S) == 2 ? ELEMENT<S>.epsilon / 2 : 0;  // what is stored in a half type
  for_each_level([&](const std::string& level) {
    const std::string what = level + " " + ELEMENT<S>.name + " " + c.name();
    const auto ours = run(c, inputs, OneAfterAnother{}, 1);
    check_close(ours.interests, exact.interests, tolerance + rounded, what + "interests");
    check_close(ours.items, exact.items, tolerance + rounded, what + "gradient of the items");
    check_close(ours.maps, exact.maps, tolerance, what + "of the maps");
    check_close(ours.bias, exact.bias, tolerance, what + "of the bias");
    const auto items_alone = run(c, inputs, OneAfterAnother{}, 1, false), threaded = run(c, inputs, Threads{}, 3);
    check(same_bits(items_alone.items, ours.items), what + "without the parameters' gradients");
    check(same_bits(threaded.interests, ours.interests) && same_bits(threaded.items, ours.items) &&
              same_bits(threaded.maps, ours.maps) && same_bits(threaded.bias, ours.bias),
          what + "three threads");
  });
}

// By place a block has 8 to 32 sequences, their rows of one place 64; elsewhere a block has 16. Empty sequences first,
// last and side by side.
template <class S>
void test_type() {
  const std::vector<int64_t> lengths{0, 1, 2, 0, 0, 15, 16, 17, 33, 0};
  for (const bool by_place : {false, true}) {
    for (const int64_t capacity : {0, 33, 36})
      for (const bool options : {false, true})
        test_case<S>({lengths, capacity, 3, 5, 6, by_place, options, options, options, options});
    for (const int64_t interests : {1, 2, 4, 5, 9}) test_case<S>({{5, 17}, 17, interests, 9, 9, by_place});
    for (const int64_t d : {1, 3, 8, 15, 16, 17, 33, 65}) test_case<S>({{5, 17}, 0, 4, d, 7, by_place, true});
    for (const int64_t e : {1, 3, 8, 15, 16, 17, 33, 65}) test_case<S>({{5, 17}, 0, 4, 7, e, by_place, false, true});
    for (const int64_t iterations : {1, 2, 5})
      test_case<S>({{4, 9}, 9, 3, 8, 8, by_place, false, true, true, false, iterations});
    for (const int64_t batch : {1, 15, 16, 17, 33, 65, 130})
      test_case<S>({std::vector<int64_t>(batch, 3), 3, 2, 4, 4, by_place, true, true});
    test_case<S>({{0, 0}, 2, 3, 4, 4, by_place, true, true});
    if (STORED<S> == Element::computed)  // half types are never streamed
      test_case<S>({{3, 0, 5}, 6, 2, 32, 16, by_place, true, false, false, false, 3, true});
  }
}

}  // namespace

void test_capsule_routing() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace testing
}  // namespace cmi_fast
