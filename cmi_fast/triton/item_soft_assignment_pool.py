"""``item_soft_assignment_pool`` in Triton: the pooling of rows gathered by id, and the gradient of their table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.launch import chunk_size, launch
from cmi_fast.triton.rows import load_chunk, store_chunk, unwanted
from cmi_fast.triton.soft_assignment_pool import Pooling

BLOCK_POSITIONS = 32


def forward(
    ids: Tensor,
    table: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
) -> Tensor:
    return Pooling(table, ids, categories, lengths, offsets, views, temperature, temperature_tensor).forward()


def backward(
    pooled_grad: Tensor,
    ids: Tensor,
    table: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    table_grad: bool,
    categories_grad: bool,
    temperature_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    pooling = Pooling(table, ids, categories, lengths, offsets, views, temperature, temperature_tensor)
    none = unwanted(table)
    rows_grad = none
    if table_grad:
        rows_grad = table.new_empty(ids.numel(), table.shape[1], dtype=accumulation_type(table.dtype))
    gradients = pooling.backward(pooled_grad, rows_grad, categories_grad, temperature_grad)
    return _sum_by_id(rows_grad, ids, lengths, table) if table_grad else none, *gradients


def _sum_by_id(rows_grad: Tensor, ids: Tensor, lengths: Tensor | None, table: Tensor) -> Tensor:
    """The gradient of ``table``: a program a row, which adds up its positions in their order."""
    if lengths is not None:
        outside = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
        ids = ids.masked_fill(outside, len(table))
    ordered, positions = ids.flatten().sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(len(table) + 1, device=ids.device, dtype=ids.dtype))
    table_grad = torch.empty_like(table, memory_format=torch.contiguous_format)
    d = table.shape[1]
    grid = len(table), triton.cdiv(d, chunk_size(d))
    constants = {"D": d, "BLOCK": BLOCK_POSITIONS, "CHUNK": chunk_size(d)}
    launch(_sum_by_id_kernel, grid, rows_grad, positions, starts, table_grad, **constants)
    return table_grad


@triton.jit
def _sum_by_id_kernel(
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
