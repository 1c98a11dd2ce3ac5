// The same bits on any number of threads, under the operators' own schedules. ThreadSanitizer watches.
#include "gru.h"
#include "interest_softmax.h"
#include "nt_xent.h"
#include "pool.h"

namespace cmi_fast::testing {
namespace {

constexpr int64_t THREADS[] = {1, 2, 3, 8, 64};

template <class T>
void test_nt_xent() {
  for (const NtXentCase& c : {NtXentCase{1, 5, 0.1, false, true, true}, NtXentCase{33, 5, 0.1, false, true, true},
                              NtXentCase{300, 5, 0.1, false, true, true}, NtXentCase{300, 5, 0.005, true, true, true},
                              NtXentCase{300, 5, 1, false, false, false}})
    for (const int64_t blocks : {0, 4}) {
      if (blocks > 0 && c.pairs < 100) continue;  // more blocks than tiles
      const NtXentInputs<T> inputs(c);
      const auto expected = run_nt_xent(c, inputs, OneAfterAnother{}, blocks);
      check_nt_xent(expected, nt_xent_term_by_term(c, inputs), ELEMENT<T>.name + " " + c.name());
      for (const int64_t threads : THREADS)
        check(run_nt_xent(c, inputs, Threads{}, blocks, threads).same_bits_as(expected),
              ELEMENT<T>.name + " " + c.name() + "same bits on " + std::to_string(threads) + " threads");
    }
}

template <class T>
void test_interest_softmax() {
  for (const int64_t m : {1, 8, 20}) {
    const InterestSoftmaxCase c{150, m, 300, 5};
    const InterestSoftmaxInputs<T> inputs(c);
    const auto expected = run_interest_softmax(c, inputs, OneAfterAnother{}, 64);
    check_interest_softmax(expected, c, inputs, ELEMENT<T>.name + " " + c.name());
    check(run_interest_softmax(c, inputs, Threads{}, 64).same_bits_as(expected),
          ELEMENT<T>.name + " " + c.name() + "same bits on threads");
  }
}

template <class T>
void test_pool() {
  std::vector<int64_t> lengths(400);
  for (size_t b = 0; b < lengths.size(); ++b) lengths[b] = b * 7 % 23;
  for (const PoolCase& c : {PoolCase{lengths, 0, 5, 9}, PoolCase{lengths, 22, 5, 9, 0.1, 2, 100},
                            PoolCase{lengths, 22, 5, 16, 0.1, 0, 0, sizeof(T) > 2}}) {
    const PoolInputs<T> inputs(c);
    const auto expected = run_pool(c, inputs, OneAfterAnother{}, 1, every_gradient<T>(c));
    check_pool(expected, pool_item_by_item(c, inputs), c, ELEMENT<T>.name + " " + c.name());
    for (const int64_t threads : THREADS)
      check(run_pool(c, inputs, Threads{}, threads, every_gradient<T>(c)).same_bits_as(expected),
            ELEMENT<T>.name + " " + c.name() + "same bits on " + std::to_string(threads) + " threads");
  }
}

template <class T>
void test_gru() {
  std::vector<int64_t> lengths(300);
  for (size_t b = 0; b < lengths.size(); ++b) lengths[b] = b * 7 % 9;
  for (const GruCase& c : {GruCase{lengths, 0, 3, 5}, GruCase{lengths, 9, 16, 4, true, sizeof(T) > 2}}) {
    const GruInputs<T> inputs(c);
    const auto expected = run_gru(c, inputs, OneAfterAnother{}, 1, every_gradient(inputs));
    check_gru(expected, gru_item_by_item(c, inputs), ELEMENT<T>.name + " " + c.name());
    for (const int64_t threads : THREADS)
      check(run_gru(c, inputs, Threads{}, threads, every_gradient(inputs)).same_bits_as(expected),
            ELEMENT<T>.name + " " + c.name() + "same bits on " + std::to_string(threads) + " threads");
  }
}

}  // namespace

void test_threads() {  // what the threads share does not depend on the ISA level: the best one
  test_nt_xent<float>();
  test_nt_xent<BFloat16>();
  test_interest_softmax<float>();
  test_interest_softmax<BFloat16>();
  test_pool<float>();
  test_pool<BFloat16>();
  test_gru<float>();
  test_gru<BFloat16>();
}

}  // namespace cmi_fast::testing
