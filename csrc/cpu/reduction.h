// Losses reduced as the caller wishes, inside their operator: for a small batch torch's own reduction, and its
// gradient, take longer than the losses.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>

#include "cpu/checks.h"

namespace cmi_fast {

enum class Reduction { none, sum, mean };

inline Reduction reduction_of(const std::string& name) {
  if (name == "none") return Reduction::none;
  if (name == "sum") return Reduction::sum;
  STD_TORCH_CHECK(name == "mean", "reduction must be none, sum or mean, found ", name);
  return Reduction::mean;
}

// The losses [count], or a scalar; on the device of `like`.
template <class T>
Tensor reduce(const T* losses, int64_t count, Reduction reduction, const Tensor& like) {
  if (reduction == Reduction::none) {
    const Tensor copy = torch::stable::new_empty(like, {count}, SCALAR_TYPE<T>);
    std::copy_n(losses, count, mutable_data<T>(copy));
    return copy;
  }
  const Tensor loss = torch::stable::new_empty(like, {}, SCALAR_TYPE<T>);
  const double sum = std::accumulate(losses, losses + count, 0.0);
  *mutable_data<T>(loss) = T(reduction == Reduction::mean ? sum / count : sum);
  return loss;
}

// The cotangents of the losses, from that of what `reduce` gave: one for each, or a scalar.
template <class T>
void spread(const T* cotangent, int64_t count, Reduction reduction, T* losses) {
  if (reduction == Reduction::none)
    std::copy_n(cotangent, count, losses);
  else
    std::fill_n(losses, count, reduction == Reduction::mean ? *cotangent / count : *cotangent);
}

}  // namespace cmi_fast
