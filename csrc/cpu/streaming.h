#pragma once

#include "cpu/checks.h"

namespace cmi_fast {

// More than the caches hold until somebody reads it, and rows that are whole cache lines of T. Kernels stream what they
// store as T, so a half type's own alignment does not matter.
template <class T>
bool worth_streaming(const Tensor& rows) {
  constexpr int64_t CACHED_BYTES = 4 << 20, CACHE_LINE = 64;
  return rows.numel() * sizeof(T) > CACHED_BYTES && rows.size(-1) * sizeof(T) % CACHE_LINE == 0 &&
         reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % CACHE_LINE == 0;
}

}  // namespace cmi_fast
