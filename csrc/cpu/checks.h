// Guards shared by the CPU operators. Python words errors in the caller's terms; these keep a direct or compiled call
// from reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>

#include "cpu/kernels/element.h"
#include "cpu/kernels/half.h"
#include "cpu/kernels/sequences.h"
#include "tensors.h"

namespace cmi_fast {

template <class T>
inline constexpr ScalarType SCALAR_TYPE = ScalarType::Undefined;
template <>
inline constexpr ScalarType SCALAR_TYPE<float> = ScalarType::Float;
template <>
inline constexpr ScalarType SCALAR_TYPE<double> = ScalarType::Double;
template <>
inline constexpr ScalarType SCALAR_TYPE<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType SCALAR_TYPE<Half> = ScalarType::Half;

// Calls run(T()) for the type T of the tensor's elements.
template <class Run>
auto dispatch(const Tensor& tensor, const char* name, const Run& run) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return run(float());
    case ScalarType::Double:
      return run(double());
    case ScalarType::BFloat16:
      return run(BFloat16());
    case ScalarType::Half:
      return run(Half());
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// What the tensor's elements are to a kernel that computes in T.
template <class T>
Element element(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == SCALAR_TYPE<T>) return Element::computed;
  STD_TORCH_CHECK(SCALAR_TYPE<T> == ScalarType::Float && (type == ScalarType::BFloat16 || type == ScalarType::Half),
                  "tensors must share one floating dtype, or be float32 and a half type");
  return type == ScalarType::BFloat16 ? Element::bfloat16 : Element::float16;
}

inline Tensor contiguous_index(const Tensor& index, const char* name, int64_t size) {
  STD_TORCH_CHECK(
      index.scalar_type() == ScalarType::Long && index.dim() == 1 && index.size(0) == size && index.is_cpu(), name,
      " must be int64 of shape [", size, "] on the CPU");
  return torch::stable::contiguous(index);
}

// Every sequence lies within its rows: checked here because a compiled graph has no Python checks of values.
inline void check_sequences(const Sequences& sequences, int64_t rows) {
  const int64_t *lengths = sequences.lengths, *offsets = sequences.offsets, batch = sequences.batch;
  for (int64_t b = 0; lengths && b < batch; ++b) {
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= sequences.capacity, "lengths[", b, "] = ", lengths[b],
                    " is outside [0, ", sequences.capacity, "]");
  }
  for (int64_t b = 0; offsets && b < batch; ++b) {
    STD_TORCH_CHECK(offsets[b] <= offsets[b + 1], "offsets must not fall: offsets[", b, "] = ", offsets[b],
                    ", offsets[", b + 1, "] = ", offsets[b + 1]);
  }
  STD_TORCH_CHECK(!offsets || (offsets[0] == 0 && offsets[batch] == rows), "offsets must run from 0 to ", rows);
}

inline double check_temperature(double value) {
  STD_TORCH_CHECK(std::isfinite(value) && value > 0, "temperature must be positive and finite, found ", value);
  return value;
}

// The tensor's value where one is given: a learned temperature for items of type T has the type they are summed in.
template <class T>
double temperature_value(double temperature, const std::optional<Tensor>& tensor) {
  if (!tensor) return check_temperature(temperature);
  STD_TORCH_CHECK(tensor->scalar_type() == SCALAR_TYPE<Compute<T>> && tensor->numel() == 1 && tensor->is_cpu(),
                  "temperature must be one number on the CPU, of the items' dtype, or float32 for half types");
  return check_temperature(*data<Compute<T>>(*tensor));
}

}  // namespace cmi_fast
