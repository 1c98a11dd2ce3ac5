#pragma once

#include <cstdint>

namespace cmi_fast {

// What rows hold in memory: the type T that a kernel computes in, or a half type (T is then float).
enum class Element { computed, bfloat16, float16 };

struct ConstRows {
  const void* data;
  Element element;
};

struct MutableRows {
  void* data;
  Element element;
};

}  // namespace cmi_fast
