#pragma once

#include <cstdint>

namespace cmi_fast {

struct FmaCeiling {
  int64_t flops_per_iteration;
  float (*run)(int64_t iterations);
};

struct FmaCeilings {
  FmaCeiling float32;
  FmaCeiling bfloat16;  // products of bfloat16 summed in float32; {} where the level has no such instruction
};

}  // namespace cmi_fast
