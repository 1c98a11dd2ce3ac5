// The interest softmax against Eq. 7 at every ISA level, around every edge of tiles, strips and vectors.
#include "interest_softmax.h"

namespace cmi_fast::testing {
namespace {

template <class T>
void test_case(const InterestSoftmaxCase& c, int64_t parts = 1) {
  const InterestSoftmaxInputs<T> inputs(c);
  for_each_level([&](const std::string& level) {
    check_interest_softmax(run_interest_softmax(c, inputs, OneAfterAnother{}, parts), c, inputs,
                           level + " " + ELEMENT<T>.name + " " + c.name());
  });
}

template <class T>
void test_shapes() {
  // A tile has 64 candidates.
  for (const int64_t count : {1, 2, 63, 64, 65, 130})
    for (const bool options : {false, true}) test_case<T>({9, 3, count, 5, 0.3, options});
  // A strip holds up to 64 queries; many interests take another way through the backward, one takes a third.
  for (const int64_t m : {1, 2, 3, 4, 5, 8, 16, 17, 64, 100})
    for (const int64_t users : {1, 7, 8, 9, 33}) test_case<T>({users, m, 70, 3}, 3);
  // Vectors have 2 to 16 lanes, and rows are taken up to four vectors at a time.
  for (const int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 200})
    for (const int64_t m : {1, 4, 20}) test_case<T>({5, m, 70, d, 1});
}

// Nobody but the target counts: the loss and all gradients are exactly 0.
template <class T>
void test_targets_alone() {
  const InterestSoftmaxCase c{9, 3, 70, 5};
  InterestSoftmaxInputs<T> inputs(c);
  for (int64_t i = 0; i < c.users * c.count; ++i) inputs.exclude[i] = inputs.targets[i / c.count] != i % c.count;
  for_each_level([&](const std::string& level) {
    const auto ours = run_interest_softmax(c, inputs, OneAfterAnother{}, 1);
    const auto zero = [&](const auto& numbers) {
      for (const auto x : numbers) check(to_double(x) == 0, level + " " + ELEMENT<T>.name + ": targets alone");
    };
    zero(ours.losses);
    zero(ours.interests);
    zero(ours.candidates);
    zero(ours.general);
    zero(ours.bias);
  });
}

// A NaN reaches its own user's results, and of others' only the candidates they share.
template <class T>
void test_nan() {
  for (const int64_t m : {1, 3, 20}) {
    const InterestSoftmaxCase c{9, m, 70, 5, 0.3, false};
    InterestSoftmaxInputs<T> inputs(c);
    inputs.interests[(4 * m + m - 1) * c.d + 2] = ELEMENT<T>.nan;
    for_each_level([&](const std::string& level) {
      const auto ours = run_interest_softmax(c, inputs, OneAfterAnother{}, 1);
      for (int64_t b = 0; b < c.users; ++b) {
        bool found = false;
        for (int64_t j = 0; j < m * c.d; ++j) found |= std::isnan(to_double(ours.interests[b * m * c.d + j]));
        check(std::isnan(ours.losses[b]) == (b == 4) && found == (b == 4),
              level + " " + ELEMENT<T>.name + ": NaN of user 4 at user " + std::to_string(b));
      }
    });
  }
}

template <class T>
void test_type() {
  test_shapes<T>();
  test_targets_alone<T>();
  test_nan<T>();
}

}  // namespace

void test_interest_softmax_loss() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
