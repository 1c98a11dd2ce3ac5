// A workspace cut into buffers. Torch-free.
#pragma once

#include <cstdint>

namespace cmi_fast {
namespace {

// Points the buffers to consecutive places of `memory`, if there is one, and returns the size of them all.
template <class T, int COUNT>
inline int64_t place_buffers(const int64_t (&sizes)[COUNT], T** const (&buffers)[COUNT], T* memory) {
  int64_t total = 0;
  for (int i = 0; i < COUNT; ++i) {
    if (memory) *buffers[i] = memory + total;
    total += sizes[i];
  }
  return total;
}

}  // namespace
}  // namespace cmi_fast
