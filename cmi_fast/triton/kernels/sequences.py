"""Where the sequences of a call lie: padded or jagged, in one form for all kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence(x, b):
    """Positions [begin, end) of sequence ``b``; an index that nobody has checked never leads out of memory.

    ``x`` has ``lengths`` [B] or None, ``offsets`` [B + 1] or None, ``length`` of a padded sequence, and ``positions``,
    how many there are of all sequences, padding too.
    """
    if x.offsets is not None:
        begin = tl.load(x.offsets + b).to(tl.int64)
        end = tl.load(x.offsets + b + 1).to(tl.int64)
    else:
        begin = b * x.length
        end = begin + x.length
        if x.lengths is not None:
            end = tl.minimum(end, begin + tl.load(x.lengths + b).to(tl.int64))
    return tl.maximum(begin, 0), tl.minimum(end, x.positions)
