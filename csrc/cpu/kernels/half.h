// Half types in memory, and the type that their values are computed in.
#pragma once

#include <cstdint>

namespace cmi_fast {

struct BFloat16 {
  uint16_t bits;
};

struct Half {  // IEEE binary16
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using type = T;
};

template <>
struct ComputeOf<BFloat16> {
  using type = float;
};

template <>
struct ComputeOf<Half> {
  using type = float;
};

// Kernels read and write T, and compute and sum in Compute<T>: float for the half types, otherwise T itself.
template <class T>
using Compute = typename ComputeOf<T>::type;

}  // namespace cmi_fast
