#pragma once

#include <cstdint>

#include "cpu/checks.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cmi_fast {

// Asks for pages of 2 MB in new memory that a caller is about to fill: tens of megabytes in pages of 4 KB take longer
// to get from the system than to compute. Advice only; memory that is there already stays as it is.
inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / PAGE * PAGE;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// The same for a new tensor of T or of a half type.
template <class T>
void prefer_huge_pages(const Tensor& rows) {
  const int64_t element_bytes = rows.scalar_type() == SCALAR_TYPE<T> ? sizeof(T) : 2;
  prefer_huge_pages(rows.mutable_data_ptr(), rows.numel() * element_bytes);
}

}  // namespace cmi_fast
