// What the tests of the torch-free code measure with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/level.h"
#include "elements.h"

namespace cmi_fast::testing {

// Counts a check; a failed one is printed, and the program's exit status tells.
void check(bool holds, const std::string& what);

// Memory of exactly this size, full of NaN: AddressSanitizer sees an access one element outside, and a result shows
// that something was read, or left, which nobody wrote.
template <class T>
std::vector<T> poisoned(int64_t size) {
  return std::vector<T>(size, ELEMENT<T>.nan);
}

// As poisoned, at an address that streaming stores can go to.
template <class T>
std::unique_ptr<T, decltype(&std::free)> aligned(int64_t size) {
  void* memory = nullptr;
  check(posix_memalign(&memory, 64, size * sizeof(T)) == 0, "memory");
  std::fill_n(static_cast<T*>(memory), size, ELEMENT<T>.nan);
  return {static_cast<T*>(memory), &std::free};
}

template <class T>
std::vector<T> random_numbers(int64_t size, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<T> numbers(size);
  for (T& x : numbers) x = from_double<T>(normal(generator));
  return numbers;
}

// The largest error, relative to the largest finite magnitude or to 1, the inputs' order of magnitude.
template <class T>
double error(const std::vector<T>& ours, const std::vector<double>& exact) {
  double largest = 1, difference = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double our = to_double(ours[i]);
    const double off = our == exact[i] ? 0 : std::abs(our - exact[i]);  // the same infinity is right
    difference = off <= difference ? difference : off;                  // NaN passes on
    if (std::isfinite(exact[i])) largest = std::max(largest, std::abs(exact[i]));
  }
  return difference / largest;
}

template <class T>
void check_close(const std::vector<T>& ours, const std::vector<double>& exact, double tolerance,
                 const std::string& what) {
  const double found = ours.size() == exact.size() ? error(ours, exact) : std::nan(""), unit = ELEMENT<T>.epsilon;
  check(found <= tolerance,
        what + ": error " + std::to_string(found / unit) + " eps, allowed " + std::to_string(tolerance / unit));
}

// NaNs of the same bits count as the same.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || __builtin_memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Runs `test(name)` at every ISA level of this CPU.
template <class Test>
void for_each_level(const Test& test) {
  const std::string names = supported_isa_levels() + ",", before = isa_level_name();
  for (size_t begin = 0, end; (end = names.find(',', begin)) != std::string::npos; begin = end + 1) {
    const std::string name = names.substr(begin, end - begin);
    set_isa_level(name);
    test(name);
  }
  set_isa_level(before);
}

// Workers at the same time, on as many threads: std::thread, because ThreadSanitizer does not know OpenMP's barriers.
struct Threads {
  template <class Run>
  void operator()(int64_t workers, const Run& run) const {
    std::vector<std::thread> threads;
    for (int64_t worker = 1; worker < workers; ++worker) threads.emplace_back([&run, worker] { run(worker); });
    run(0);
    for (std::thread& thread : threads) thread.join();
  }
};

// Workers one after another, as when a thread pool has one thread to give.
struct OneAfterAnother {
  template <class Run>
  void operator()(int64_t workers, const Run& run) const {
    for (int64_t worker = 0; worker < workers; ++worker) run(worker);
  }
};

}  // namespace cmi_fast::testing
