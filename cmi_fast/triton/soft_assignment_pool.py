"""``soft_assignment_pool`` in Triton, of given rows or of rows gathered from a table by id."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.triton.kernels.soft_assignment_pool import Inputs, Tile, backward_kernel, forward_kernel
from cmi_fast.triton.launch import chunk_size, launch
from cmi_fast.triton.rows import as_pointer, unit_rows_backward, unwanted
from cmi_fast.triton.tuning import run_tuned

BLOCK_ITEMS = 16
SIZES_TO_TRY = ((16, 4), (16, 8), (32, 8))  # items and warps that autotuning tries
LARGEST_SUMS = 4096  # numbers of a program's [V * m, d] matrix that it can keep in registers


def forward(
    items: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
) -> Tensor:
    return Pooling(items, None, categories, lengths, offsets, views, temperature, temperature_tensor).forward()


def backward(
    pooled_grad: Tensor,
    items: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    items_grad: bool,
    categories_grad: bool,
    temperature_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    pooling = Pooling(items, None, categories, lengths, offsets, views, temperature, temperature_tensor)
    rows_grad = torch.zeros_like(items, memory_format=torch.contiguous_format) if items_grad else unwanted(items)
    return rows_grad, *pooling.backward(pooled_grad, rows_grad, categories_grad, temperature_grad)


class Pooling:
    """One call; ``rows`` are the items [B, L, d] or [T, d], or a table [*, d] that ``ids`` [B, L] or [T] point into."""

    def __init__(
        self,
        rows: Tensor,
        ids: Tensor | None,
        categories: Tensor,
        lengths: Tensor | None,
        offsets: Tensor | None,
        views: Tensor | None,
        temperature: float,
        temperature_tensor: Tensor | None,
    ) -> None:
        shape = rows.shape[:-1] if ids is None else ids.shape
        m, d = categories.shape
        view_count = 1 if views is None else len(views)
        padded_views = triton.next_power_of_2(view_count)
        padded_categories = max(16, triton.next_power_of_2(m))  # a matrix product sums over at least 16
        chunk = chunk_size(d, max(16, min(64, LARGEST_SUMS // (padded_views * padded_categories))))
        self.tile = Tile(m, view_count, d, BLOCK_ITEMS, padded_views, padded_categories, chunk)
        self.warps = 4 if padded_views * padded_categories * chunk <= 1024 else 8
        self.inputs = Inputs(
            rows.contiguous(),
            None if ids is None else ids.contiguous(),
            categories.contiguous(),
            None if lengths is None else lengths.contiguous(),
            None if offsets is None else offsets.contiguous(),
            as_pointer(temperature, temperature_tensor, categories),
            None if views is None else views.contiguous().view(torch.uint8),
            shape[0] if offsets is None else len(offsets) - 1,
            shape.numel(),
            shape[-1],
            len(rows),
        )

    def _launch(self, name: str, kernel: object, *outputs: Tensor | None) -> None:
        x, grid = self.inputs, (self.inputs.batch, triton.cdiv(self.tile.D, self.tile.CHUNK))

        def run(items: int, warps: int) -> None:
            launch(kernel, grid, x, *outputs, TILE=self.tile._replace(ITEMS=items), num_warps=warps)

        wanted = [output is not None for output in outputs]
        counts = triton.next_power_of_2(x.batch), triton.next_power_of_2(x.positions)
        kind = name, x.rows.dtype, x.rows.device, self.tile, x.ids is None, *wanted, *counts
        run_tuned(kind, [(self.tile.ITEMS, self.warps), *SIZES_TO_TRY], run)

    def forward(self) -> Tensor:
        x = self.inputs
        views = () if x.views is None else (self.tile.V,)
        pooled = x.categories.new_empty(*views, x.batch, *x.categories.shape)
        self._launch("soft_assignment_pool", forward_kernel, pooled)
        return pooled

    def backward(
        self, pooled_grad: Tensor, rows_grad: Tensor, categories_grad: bool, temperature_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the categories and the temperature; ``rows_grad``, unless empty, gets that of each position."""
        x = self.inputs
        # Each sequence's own part, added up afterwards: in one order, whichever program comes first.
        parts, along = None, None
        if categories_grad:
            parts = x.temperature.new_empty(x.batch, *x.categories.shape)
        if temperature_grad:
            along = x.temperature.new_empty(x.batch)
        rows_grad_or_none = rows_grad if rows_grad.numel() else None
        outputs = pooled_grad.contiguous(), rows_grad_or_none, parts, along
        self._launch("soft_assignment_pool_backward", backward_kernel, *outputs)
        of_categories = None if parts is None else unit_rows_backward(x.categories, parts.sum(0))
        of_temperature = None if along is None else -along.sum() / x.temperature
        return (
            unwanted(x.categories) if of_categories is None else of_categories,
            unwanted(x.categories) if of_temperature is None else of_temperature,
        )
