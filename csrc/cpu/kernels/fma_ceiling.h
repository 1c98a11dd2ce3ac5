#pragma once

#include <cstdint>

namespace cmi_fast {

struct FmaCeiling {
  int64_t flops_per_iteration;
  float (*run)(int64_t iterations);
};

}  // namespace cmi_fast
