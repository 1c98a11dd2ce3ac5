#pragma once

#include "cpu/checks.h"

namespace cmi_fast {

// Whether a gradient like `rows` is to be written past the caches: more than they hold until somebody reads it, and
// rows that are whole cache lines of what is computed.
template <class T>
bool worth_streaming(const Tensor& rows) {
  constexpr int64_t CACHED_BYTES = 4 << 20, CACHE_LINE = 64;
  return rows.scalar_type() == SCALAR_TYPE<T> && rows.numel() * sizeof(T) > CACHED_BYTES &&
         rows.size(-1) * sizeof(T) % CACHE_LINE == 0 &&
         reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % CACHE_LINE == 0;
}

}  // namespace cmi_fast
