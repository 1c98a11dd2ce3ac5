#pragma once

#include <algorithm>
#include <optional>

#include "cpu/checks.h"

namespace cmi_fast {

// The sequences of items [B, L, d] with lengths, or [T, d] with offsets, checked; `index` keeps alive what they point
// to.
struct ReadSequences {
  Tensor index;
  Sequences sequences;
  int64_t rows, longest;

  ReadSequences(const Tensor& items, const std::optional<Tensor>& lengths, const std::optional<Tensor>& offsets) {
    STD_TORCH_CHECK(items.dim() == (offsets ? 2 : 3) && items.size(-1) > 0,
                    "items must be [B, L, d], or [T, d] with offsets");
    STD_TORCH_CHECK(!offsets || offsets->numel() > 0, "offsets must be [B + 1]");
    STD_TORCH_CHECK(!(offsets && lengths), "give lengths or offsets, not both");
    const int64_t batch = offsets ? offsets->numel() - 1 : items.size(0);
    sequences = {batch, offsets ? 0 : items.size(1), nullptr, nullptr};
    if (offsets) {
      index = contiguous_index(*offsets, "offsets", batch + 1);
      sequences.offsets = data<int64_t>(index);
    } else if (lengths) {
      index = contiguous_index(*lengths, "lengths", batch);
      sequences.lengths = data<int64_t>(index);
    }
    rows = items.numel() / items.size(-1);
    check_sequences(sequences, rows);
    longest = 0;
    for (int64_t b = 0; b < batch; ++b) longest = std::max(longest, sequences.length(b));
  }
};

// Parts that each have a sum of the parameters' gradients, `bytes` large: as many as there is memory for, whatever the
// number of threads.
inline int64_t parts_with_sums(int64_t parts, int64_t bytes) {
  constexpr int64_t MIN_PARTS = 4, MEMORY = 64 << 20;
  return std::min(parts, std::max(MEMORY / std::max<int64_t>(bytes, 1), MIN_PARTS));
}

}  // namespace cmi_fast
