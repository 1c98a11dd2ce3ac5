#include "cpu/level.h"

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

namespace cmi_fast {
namespace {

constexpr std::array NAMES{"baseline", "v3", "v4", "v4_bf16"};

bool supported(Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  switch (level) {
    case Level::baseline:
      return true;
    case Level::v3:
      return v3;
    case Level::v4:
      return v4;
    case Level::v4_bf16:
      return v4 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return level == Level::baseline;
#endif
}

Level best() {
  for (size_t i = NAMES.size(); i-- > 0;)
    if (supported(Level(i))) return Level(i);
  return Level::baseline;
}

std::atomic<Level>& chosen() {
  static std::atomic<Level> level{best()};
  return level;
}

}  // namespace

bool cpu_has_vnni() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

Level isa_level() { return chosen().load(std::memory_order_relaxed); }

std::string isa_level_name() { return NAMES[size_t(isa_level())]; }

std::string supported_isa_levels() {
  std::string names;
  for (size_t i = 0; i < NAMES.size(); ++i)
    if (supported(Level(i))) names.append(names.empty() ? "" : ",").append(NAMES[i]);
  return names;
}

void set_isa_level(std::string name) {
  for (size_t i = 0; i < NAMES.size(); ++i)
    if (name == NAMES[i] && supported(Level(i))) {
      chosen() = Level(i);
      return;
    }
  throw std::runtime_error("ISA level '" + name + "': this CPU runs " + supported_isa_levels());
}

}  // namespace cmi_fast
