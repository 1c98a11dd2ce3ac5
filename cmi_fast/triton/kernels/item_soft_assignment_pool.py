"""The kernel that gathers the gradient of a table."""

from __future__ import annotations

import triton
import triton.language as tl

from cmi_fast.triton.kernels.rows import load_chunk, store_chunk


@triton.jit
def sum_by_id_kernel(
    rows_grad,  # [T, D]
    positions,  # [T], in the order of the ids at them
    starts,  # [rows + 1], into positions
    table_grad,  # [rows, D]
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNK
    begin = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    sums = tl.zeros([1, CHUNK], rows_grad.dtype.element_ty)
    for start in range(begin, end, BLOCK):
        place = tl.arange(0, BLOCK).to(tl.int64) + start
        position = tl.load(positions + place, mask=place < end, other=0)
        sums += tl.sum(load_chunk(rows_grad, position, place < end, chunk, D, CHUNK), 0)[None, :]
    store_chunk(table_grad, row + tl.zeros([1], tl.int64), tl.full([1], True, tl.int1), chunk, sums, D, CHUNK)
