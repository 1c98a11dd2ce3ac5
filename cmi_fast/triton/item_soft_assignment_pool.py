"""``item_soft_assignment_pool`` in Triton: the pooling of rows gathered by id, and the gradient of their table."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.kernels.item_soft_assignment_pool import sum_by_id_kernel
from cmi_fast.triton.launch import chunk_size, launch
from cmi_fast.triton.rows import unwanted
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
    launch(sum_by_id_kernel, grid, rows_grad, positions, starts, table_grad, **constants)
    return table_grad
