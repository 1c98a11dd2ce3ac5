// ISA levels: which ones this CPU runs, and which one the kernels use.
#pragma once

#include <string>

namespace cmi_fast {

// The levels that are built, from the lowest; CMakeLists.txt holds their flags.
#if defined(__x86_64__)
#define CMI_FAST_FOR_EACH_LEVEL(apply) apply(baseline) apply(v3) apply(v4) apply(v4_bf16)
#else
#define CMI_FAST_FOR_EACH_LEVEL(apply) apply(baseline)
#endif

enum class Level { baseline, v3, v4, v4_bf16 };

// The best level of this CPU, unless set_isa_level chose another.
Level isa_level();

// What Python sees: the names, as CMI_FAST_ISA takes them; a name that this CPU cannot run is an error.
std::string isa_level_name();
std::string supported_isa_levels();  // comma-separated, from the lowest
void set_isa_level(std::string name);

}  // namespace cmi_fast
