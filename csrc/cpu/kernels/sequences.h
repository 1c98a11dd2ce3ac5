#pragma once

#include <cstdint>

namespace cmi_fast {

// Sequences of rows in one buffer. Padded: sequence b starts at row b * capacity and holds lengths[b] rows, all of
// them without lengths. Jagged: it holds the rows offsets[b] .. offsets[b + 1].
struct Sequences {  // always inlined: an out-of-line copy compiled for AVX-512 could become everybody's
  int64_t batch, capacity;
  const int64_t* lengths;
  const int64_t* offsets;

  __attribute__((always_inline)) int64_t first(int64_t b) const { return offsets ? offsets[b] : b * capacity; }
  __attribute__((always_inline)) int64_t length(int64_t b) const {
    return offsets ? offsets[b + 1] - offsets[b] : lengths ? lengths[b] : capacity;
  }
  __attribute__((always_inline)) int64_t rows(int64_t b) const {
    return offsets ? length(b) : capacity;
  }  // with the padding
};

}  // namespace cmi_fast
