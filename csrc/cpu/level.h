// ISA levels: which ones this CPU runs, and which one the kernels use. Torch-free.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "cpu/kernels/half.h"

namespace cmi_fast {

// The kernel `name` of type `Type`, one for each level in the level's own namespace: its declarations at namespace
// scope, and in a function the one to use now.
#define CMI_FAST_DECLARE_KERNEL_AT(level, Type, name) \
  namespace level {                                   \
  extern const Type name;                             \
  }
#if defined(__x86_64__)
#define CMI_FAST_DECLARE_KERNEL(Type, name)        \
  CMI_FAST_DECLARE_KERNEL_AT(baseline, Type, name) \
  CMI_FAST_DECLARE_KERNEL_AT(v3, Type, name)       \
  CMI_FAST_DECLARE_KERNEL_AT(v4, Type, name)       \
  CMI_FAST_DECLARE_KERNEL_AT(v4_bf16, Type, name)
#define CMI_FAST_KERNEL(Type, name) ::cmi_fast::at_level<Type>({&baseline::name, &v3::name, &v4::name, &v4_bf16::name})
#else
#define CMI_FAST_DECLARE_KERNEL(Type, name) CMI_FAST_DECLARE_KERNEL_AT(baseline, Type, name)
#define CMI_FAST_KERNEL(Type, name) ::cmi_fast::at_level<Type>({&baseline::name})
#endif

enum class Level { baseline, v3, v4, v4_bf16 };

// The best level of this CPU, unless set_isa_level chose another.
Level isa_level();

// AVX-512's dot products of 8-bit integers, which CPUs of the levels v4 have or have not.
bool cpu_has_vnni();

template <class Kernel>
const Kernel& at_level(std::initializer_list<const Kernel*> levels) {
  return **(levels.begin() + size_t(isa_level()));
}

// Of an operator's kernels at one level, that for T.
template <class T, class Kernels>
const auto& of_type(const Kernels& kernels) {
  if constexpr (std::is_same_v<T, float>)
    return kernels.float32;
  else if constexpr (std::is_same_v<T, double>)
    return kernels.float64;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return kernels.bfloat16;
  else
    return kernels.float16;
}

// What Python sees: the names, as CMI_FAST_ISA takes them; a name that this CPU cannot run is an error.
std::string isa_level_name();
std::string supported_isa_levels();  // comma-separated, from the lowest
void set_isa_level(std::string name);

}  // namespace cmi_fast
