// The contrastive loss against Eq. 6 at every ISA level, around every edge of tiles, vectors and views.
#include "nt_xent.h"

namespace cmi_fast::testing {
namespace {

template <class T>
void test_case(const NtXentCase& c, int64_t blocks = 0) {
  const NtXentInputs<T> inputs(c);
  const NtXentExact exact = nt_xent_term_by_term(c, inputs);
  for_each_level([&](const std::string& level) {
    check_nt_xent(run_nt_xent(c, inputs, OneAfterAnother{}, blocks), exact,
                  level + " " + ELEMENT<T>.name + " " + c.name());
  });
}

struct Scores {
  double temperature;
  bool normalize;
};

// Shared shift, at its limit and far from it; running maximum; plain dot products.
constexpr Scores SCORES[] = {{0.1, true}, {0.025, true}, {0.005, true}, {1, false}};

template <class T>
void test_shapes() {
  const auto every_mode = [](int64_t pairs, int64_t d, int64_t blocks) {
    for (const Scores& s : SCORES)
      for (const bool cross_view : {false, true})
        for (const bool both : {false, true})
          test_case<T>({pairs, d, s.temperature, cross_view, both, s.normalize}, blocks);
  };
  // A tile has 64 of the rows of both views: its edges, the views' edge within it, and a last tile of one pair.
  for (const int64_t pairs : {1, 2, 15, 16, 31, 32, 33, 48, 63, 64, 65, 96, 97}) every_mode(pairs, 5, 0);
  // Vectors have 2 to 16 lanes, products up to four vectors.
  for (const int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 200})
    for (const Scores& s : SCORES) test_case<T>({33, d, s.temperature, false, true, s.normalize});
  // Several tiles a block, and not the same number in each.
  for (const int64_t blocks : {2, 4}) every_mode(150, 3, blocks);
}

// Rows whose squares overflow or vanish, and zero rows. Scaled by a power of two a row has the same loss, and its
// gradient is scaled back.
template <class T>
void test_norms() {
  const NtXentCase c{40, 17, 0.1, false, true, true};
  const int exponent = sizeof(T) == 8 ? 700 : 90;
  NtXentInputs<T> inputs(c);
  for (const int64_t zero : {int64_t(0), 33 * c.d}) std::fill_n(inputs.second.begin() + zero, c.d, T{});
  const NtXentExact exact = nt_xent_term_by_term(c, inputs);
  const auto power = [&](size_t k) { return (int64_t(k) / c.d % 3 - 1) * exponent; };  // of the row that holds k
  const auto scale = [&](std::vector<T>& rows, int sign) {
    for (size_t k = 0; k < rows.size(); ++k)
      rows[k] = from_double<T>(std::ldexp(to_double(rows[k]), int(sign * power(k))));
  };
  scale(inputs.first, 1);
  scale(inputs.second, -1);
  for_each_level([&](const std::string& level) {
    auto ours = run_nt_xent(c, inputs, OneAfterAnother{});
    scale(ours.first, 1);
    scale(ours.second, -1);
    check_nt_xent(ours, exact, level + " " + ELEMENT<T>.name + " norms: ");
  });
}

// One NaN reaches everybody whose negative it is, whatever the shift; nothing hangs.
template <class T>
void test_nan() {
  for (const double temperature : {0.1, 0.005}) {
    const NtXentCase c{40, 17, temperature, false, true, true};
    NtXentInputs<T> inputs(c);
    inputs.second[35 * c.d + 3] = ELEMENT<T>.nan;
    for_each_level([&](const std::string& level) {
      const auto ours = run_nt_xent(c, inputs, OneAfterAnother{});
      const auto all_nan = [&](const auto& numbers) {
        for (const auto x : numbers)
          check(std::isnan(to_double(x)), level + " " + ELEMENT<T>.name + " " + c.name() + "NaN in, NaN out");
      };
      all_nan(ours.losses);
      all_nan(ours.first);
      all_nan(ours.second);
      all_nan(ours.temperature);
    });
  }
}

// The temperature's gradient, where nobody wants it, changes no other.
template <class T>
void test_no_temperature() {
  const NtXentCase with{40, 17, 0.1, false, true, true}, without{40, 17, 0.1, false, true, true, false};
  const NtXentInputs<T> inputs(with);
  for_each_level([&](const std::string& level) {
    const auto ours = run_nt_xent(without, inputs, OneAfterAnother{});
    const auto all = run_nt_xent(with, inputs, OneAfterAnother{});
    check(same_bits(ours.first, all.first) && same_bits(ours.second, all.second),
          level + " " + ELEMENT<T>.name + ": without the temperature's gradient");
  });
}

template <class T>
void test_type() {
  test_shapes<T>();
  if constexpr (!std::is_same_v<T, Half>) test_norms<T>();  // no half lies that far from 1
  test_nan<T>();
  test_no_temperature<T>();
}

}  // namespace

void test_nt_xent_loss() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
