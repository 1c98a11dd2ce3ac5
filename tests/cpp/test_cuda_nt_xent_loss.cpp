// The CUDA kernels of nt_xent_loss, run by the emulator, against Eq. 6; and which tiles its blocks take.
#include "cuda/nt_xent_passes.h"
#include "emulated.h"
#include "nt_xent.h"

namespace cmi_fast::testing {
namespace {

template <class T>
NtXentResult<T> run_emulated(const NtXentCase& c, const NtXentInputs<T>& inputs, bool temperature_tensor,
                             bool descending) {
  const Emulated launch{descending};
  const float temperature = float(c.temperature);
  NtXentResult<T> result{poisoned<float>(c.anchors()), poisoned<float>(2 * c.pairs), poisoned<T>(c.pairs * c.d),
                         poisoned<T>(c.pairs * c.d), poisoned<float>(1)};
  for (const bool backward : {false, true}) {
    cuda::NtXentPasses<T> passes{.first = inputs.first.data(),
                                 .second = inputs.second.data(),
                                 .pairs = int(c.pairs),
                                 .d = int(c.d),
                                 .temperature = temperature_tensor ? NAN : temperature,
                                 .temperature_pointer = temperature_tensor ? &temperature : nullptr,
                                 .cross_view = c.cross_view,
                                 .both = c.both,
                                 .normalize = c.normalize,
                                 .panel = nullptr,
                                 .factors = nullptr};
    // cp.async wants rows at multiples of 16 bytes, which any allocation of these types is.
    auto panel = poisoned<T>(passes.panel_size());
    std::vector<cuda::RowFactors> factors(passes.rows(), {NAN, NAN, NAN, NAN});
    passes.panel = panel.data();
    passes.factors = factors.data();
    if (backward) {
      auto unit_grad = poisoned<float>(passes.rows() * c.d), along = poisoned<float>(passes.rows());
      auto scale = poisoned<float>(2);
      passes.backward(inputs.losses_grad.data(), result.log_sum.data(), unit_grad.data(), along.data(),
                      std::is_same_v<T, Half> ? scale.data() : nullptr, result.first.data(), result.second.data(),
                      c.temperature_grad ? result.temperature.data() : nullptr, launch);
    } else {
      std::vector<float> partial(passes.partial_size());
      passes.forward(partial.data(), result.log_sum.data(), result.losses.data(), launch);
    }
  }
  result.log_sum.resize(c.anchors());
  return result;
}

template <class T>
void test_case(const NtXentCase& c, bool temperature_tensor = false) {
  const NtXentInputs<T> inputs(c);
  check_nt_xent(run_emulated(c, inputs, temperature_tensor, false), nt_xent_term_by_term(c, inputs),
                "CUDA " + ELEMENT<T>.name + " " + c.name());
}

template <class T>
void test_order(const NtXentCase& c) {
  const NtXentInputs<T> inputs(c);
  check(run_emulated(c, inputs, false, false).same_bits_as(run_emulated(c, inputs, false, true)),
        "CUDA " + ELEMENT<T>.name + " " + c.name() + "in whatever order threads run");
}

// A zero row counts as the zero vector, and norms neither overflow nor underflow.
template <class T>
void test_norms() {
  const NtXentCase c{20, 17, 0.1, false, true, true};
  NtXentInputs<T> inputs(c);
  std::fill_n(inputs.second.begin() + 13 * c.d, c.d, T{});
  const NtXentExact exact = nt_xent_term_by_term(c, inputs);
  const int exponent = std::is_same_v<T, Half> ? 0 : 90;
  const auto scale = [&](std::vector<T>& rows, int sign) {
    for (T& x : rows) x = from_double<T>(std::ldexp(to_double(x), sign * exponent));
  };
  scale(inputs.first, 1);
  scale(inputs.second, -1);
  auto ours = run_emulated(c, inputs, false, false);
  scale(ours.first, 1);
  scale(ours.second, -1);
  check_nt_xent(ours, exact, "CUDA " + ELEMENT<T>.name + " norms: ");
}

// One NaN reaches everybody whose negative it is, whatever the shift.
template <class T>
void test_nan() {
  for (const double temperature : {0.1, 0.005}) {
    const NtXentCase c{20, 17, temperature, false, true, true};
    NtXentInputs<T> inputs(c);
    inputs.second[15 * c.d + 3] = ELEMENT<T>.nan;
    const auto ours = run_emulated(c, inputs, false, false);
    for (const float loss : ours.losses) check(std::isnan(loss), "CUDA " + ELEMENT<T>.name + " NaN in, NaN out");
    for (const T x : ours.first) check(std::isnan(to_double(x)), "CUDA " + ELEMENT<T>.name + " NaN in, NaN gradient");
  }
}

template <class T>
void test_type() {
  test_norms<T>();
  test_nan<T>();
  // A tile has 64 rows, a chunk 64 dimensions or 32: their edges, the views' edge in a tile, several of both.
  for (const int64_t pairs : {1, 2, 31, 32, 33, 64, 65})
    for (const bool cross_view : {false, true}) test_case<T>({pairs, 5, 0.1, cross_view, true, true});
  for (const int64_t d : {1, 16, 17, 33, 64, 65, 130}) test_case<T>({20, d, 0.1, false, true, true});
  for (const double temperature : {0.1, 0.005}) test_order<T>({70, 70, temperature, false, true, true});
  // Shared shift at its limit; running maximum, plain dot products, a temperature nobody waits for.
  test_case<T>({70, 20, 0.025, true, false, true});
  for (const bool cross_view : {false, true}) test_case<T>({70, 20, 0.005, cross_view, true, true});
  test_case<T>({40, 70, 1, false, false, false});
  test_case<T>({1, 3, 1, false, true, false});
  test_case<T>({20, 20, 0.1, false, true, true}, true);
}

// Every pair of parts meets once, and the parts are all tiles.
void test_schedule() {
  for (const int64_t rows : {1, 64, 65, 128, 320, 4096, 4160, 16384, 20000}) {
    const auto schedule = cuda::TriangleSchedule::of(rows, 64);
    const int parts = schedule.parts;
    const std::string what = "triangle of " + std::to_string(rows) + " rows: ";
    std::vector<int> met(parts * parts);
    int nothing = 0;
    for (int block = 0; block < schedule.triangle_blocks(); ++block) {
      int a, b;
      if (schedule.pair(block, &a, &b) && 0 <= a && a <= b && b < parts)
        ++met[a * parts + b];
      else
        ++nothing;
    }
    for (int a = 0; a < parts; ++a)
      for (int b = 0; b < parts; ++b) check(met[a * parts + b] == (a <= b), what + "pairs of parts");
    check(nothing == (parts % 2 == 1 ? (parts + 1) / 2 : 0), what + "few blocks have nothing to do");
    check(parts <= 64 && schedule.first_tile(0) == 0 && schedule.last_tile(parts - 1) == (rows + 63) / 64,
          what + "tiles");
    for (int part = 0; part < parts; ++part) {
      check(schedule.first_tile(part) < schedule.last_tile(part), what + "no part is empty");
      if (part > 0) check(schedule.last_tile(part - 1) == schedule.first_tile(part), what + "parts follow each other");
    }
  }
}

}  // namespace

void test_cuda_nt_xent_loss() {
  test_schedule();
  test_type<float>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
