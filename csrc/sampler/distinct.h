// The distinct items of a batch, ascending, by a bitmap: an item's place among them is the number of bits below its
// own.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace cmi_fast {

class DistinctItems {
 public:
  explicit DistinctItems(int64_t num_items) : bits_(num_items / 64 + 1), below_(bits_.size()) {}

  void add(int64_t item) { bits_[item / 64] |= uint64_t{1} << (item % 64); }

  // Call once, between the last add and the first place; returns how many items there are.
  int64_t count() {
    int64_t total = 0;
    for (size_t word = 0; word < bits_.size(); ++word) {
      below_[word] = total;
      total += std::popcount(bits_[word]);
    }
    return total;
  }

  int64_t place(int64_t item) const {
    const uint64_t lower = (uint64_t{1} << (item % 64)) - 1;
    return below_[item / 64] + std::popcount(bits_[item / 64] & lower);
  }

  // Writes the items, ascending.
  void list(int64_t* items) const {
    for (size_t word = 0; word < bits_.size(); ++word) {
      for (uint64_t left = bits_[word]; left != 0; left &= left - 1) {
        *items++ = static_cast<int64_t>(word) * 64 + std::countr_zero(left);
      }
    }
  }

 private:
  std::vector<uint64_t> bits_;
  std::vector<int64_t> below_;  // bits set in the words before
};

}  // namespace cmi_fast
