// Tests of everything that needs no torch: kernels at every ISA level and the schedules, for ctest and the sanitizers.
#include <atomic>
#include <cstdio>
#include <cstring>

#include "checking.h"

namespace cmi_fast::testing {
namespace {

std::atomic<int64_t> checks{0}, failures{0};  // relaxed, lest counting orders what the code should order

}  // namespace

void check(bool holds, const std::string& what) {
  checks.fetch_add(1, std::memory_order_relaxed);
  if (!holds && failures.fetch_add(1, std::memory_order_relaxed) < 20) std::printf("FAILED %s\n", what.c_str());
}

void test_pair_schedule();
void test_building_blocks();
void test_capsule_routing();
void test_gru();
void test_interest_softmax_loss();
void test_nt_xent_loss();
void test_self_attentive_pool();
void test_soft_assignment_pool();
void test_threads();
void test_top_k();
void test_cuda_interest_softmax_loss();
void test_cuda_nt_xent_loss();
void test_cuda_soft_assignment_pool();
void test_cuda_table_gradient();

}  // namespace cmi_fast::testing

int main(int count, char** arguments) {
  using namespace cmi_fast::testing;
  const struct {
    const char* name;
    void (*run)();
  } suites[] = {{"pair_schedule", test_pair_schedule},
                {"building_blocks", test_building_blocks},
                {"capsule_routing", test_capsule_routing},
                {"gru", test_gru},
                {"interest_softmax_loss", test_interest_softmax_loss},
                {"nt_xent_loss", test_nt_xent_loss},
                {"self_attentive_pool", test_self_attentive_pool},
                {"soft_assignment_pool", test_soft_assignment_pool},
                {"threads", test_threads},
                {"top_k", test_top_k},
                {"cuda_interest_softmax_loss", test_cuda_interest_softmax_loss},
                {"cuda_nt_xent_loss", test_cuda_nt_xent_loss},
                {"cuda_soft_assignment_pool", test_cuda_soft_assignment_pool},
                {"cuda_table_gradient", test_cuda_table_gradient}};
  for (const auto& suite : suites) {
    if (count > 1 && std::strcmp(arguments[1], suite.name) != 0) continue;
    const int64_t before = checks;
    suite.run();
    check(checks > before, std::string(suite.name) + " checks something");
    std::printf("%s: %lld checks\n", suite.name, static_cast<long long>(checks - before));
  }
  check(checks > 0, "usage: cmi_fast_tests [suite]");
  std::printf("%lld failed\n", static_cast<long long>(failures));
  return failures == 0 ? 0 : 1;
}
