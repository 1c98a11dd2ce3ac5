"""``nt_xent_loss`` in Triton. The algebra is in docs/kernels.md, the schedule in docs/triton.md.

Everything works on the panel [2N, d], the rows of ``first`` then of ``second``, each times a power of two in its own
dtype, and ``inverse`` [2N], which makes unit rows of them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.triton.kernels.nt_xent_loss import (
    Inputs,
    Tile,
    anchor_weight_kernel,
    forward_kernel,
    gradient_kernel,
    panel_kernel,
)
from cmi_fast.triton.launch import half_range, launch, tile_sizes
from cmi_fast.triton.rows import as_pointer, unit_rows_backward, unwanted
from cmi_fast.triton.tuning import run_tuned

# Unit rows bound the scores by 1/t: from this t on, all anchors may share the shift 1/t in float32.
SHARED_SHIFT_FROM = 0.025
# Of products in the type of that many bytes: anchors, columns and warps that autotuning tries.
TILES_TO_TRY = {
    2: ((32, 64, 4), (64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 64, 8), (128, 128, 8)),
    4: ((16, 64, 4), (32, 32, 4), (32, 64, 4), (64, 32, 4), (64, 64, 8)),
    8: (),
}


def forward(
    first: Tensor,
    second: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    negatives: str,
    direction: str,
    normalize: bool,
    fp32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Losses [2N] or [N] of the anchors, and the log-sum-exp over their negatives [2N], infinite for other rows."""
    x, tiles = _prepare(first, second, temperature, temperature_tensor, negatives, normalize, fp32_precision)
    anchor_views = 2 if direction == "both" else 1
    losses = x.inverse.new_empty(anchor_views * x.pairs)
    log_sum = x.inverse.new_full((2 * x.pairs,), torch.inf)

    def run(tile: Tile, warps: int) -> None:
        grid = triton.cdiv(x.pairs, tile.ANCHORS), anchor_views
        launch(forward_kernel, grid, x, log_sum, losses, TILE=tile, num_warps=warps)

    run_tuned(("nt_xent_loss", direction, *_kind(x, tiles)), tiles, run)
    return losses, log_sum


def backward(
    losses_grad: Tensor,
    log_sum: Tensor,
    first: Tensor,
    second: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    negatives: str,
    direction: str,
    normalize: bool,
    fp32_precision: str,
    first_grad: bool,
    second_grad: bool,
    temperature_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, tiles = _prepare(first, second, temperature, temperature_tensor, negatives, normalize, fp32_precision)
    losses_grad, unscale = half_range(losses_grad, first.dtype)
    weight = torch.zeros_like(log_sum)
    tile, _ = tiles[0]
    grid = triton.cdiv(x.pairs, tile.ANCHORS), 2 if direction == "both" else 1
    launch(anchor_weight_kernel, grid, x, losses_grad.contiguous(), log_sum, weight, TILE=tile)
    unit_grad = torch.empty_like(x.panel, dtype=log_sum.dtype)
    views = [temperature_grad or first_grad, temperature_grad or second_grad]
    first_view = 0 if views[0] else 1

    def run(tile: Tile, warps: int) -> None:
        grid = triton.cdiv(x.pairs, tile.ANCHORS), sum(views), triton.cdiv(tile.D, tile.CHUNK)
        launch(gradient_kernel, grid, x, weight, log_sum, unscale, unit_grad, first_view, TILE=tile, num_warps=warps)

    run_tuned(("nt_xent_loss_backward", *views, *_kind(x, tiles)), tiles, run)
    along = torch.empty_like(log_sum) if temperature_grad else None
    gradients = []
    for view, (rows, wanted) in enumerate(((first, first_grad), (second, second_grad))):
        half = slice(view * x.pairs, (view + 1) * x.pairs)
        gradient = None
        if views[view]:
            radial = None if along is None else along[half]
            gradient = unit_rows_backward(
                rows.contiguous(), unit_grad[half], normalize=normalize, wanted=wanted, radial=radial
            )
        gradients.append(unwanted(rows) if gradient is None else gradient)
    of_temperature = log_sum.new_empty(0) if along is None else -along.sum() / (2 * x.temperature)
    return gradients[0], gradients[1], of_temperature


def _prepare(
    first: Tensor,
    second: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    negatives: str,
    normalize: bool,
    fp32_precision: str,
) -> tuple[Inputs, list[tuple[Tile, int]]]:
    """Inputs; tiles and their numbers of warps, the rule's first."""
    pairs, d = first.shape
    shared_shift = normalize and temperature_tensor is None and temperature >= SHARED_SHIFT_FROM
    tiles = [
        (Tile(fp32_precision, negatives == "cross_view", shared_shift, d, *sizes), warps)
        for sizes, warps in _tiles_and_warps(2 * pairs, d, first.dtype)
    ]
    pointer = as_pointer(temperature, temperature_tensor, first)
    inverse = pointer.new_ones(2 * pairs)
    if not normalize:
        return Inputs(torch.cat([first, second]), inverse, pointer, pairs), tiles
    panel = first.new_empty(2 * pairs, d)
    arguments = first.contiguous(), second.contiguous(), panel, inverse, pairs
    chunk = tiles[0][0].CHUNK
    launch(panel_kernel, (triton.cdiv(pairs, 32), 2), *arguments, D=d, BLOCK=32, CHUNK=chunk)
    return Inputs(panel, inverse, pointer, pairs), tiles


def _tiles_and_warps(rows: int, d: int, dtype: torch.dtype) -> list[tuple[tuple[int, int, int], int]]:
    """Anchors, columns and dimensions of a tile, and its warps. By rule as many anchors as leave work for 132
    processors; after the rule's, what autotuning tries besides."""
    anchors, columns, chunk = tile_sizes(dtype, d)
    others = [((a, c, chunk), warps) for a, c, warps in TILES_TO_TRY[dtype.itemsize]]
    if dtype.itemsize == 2 and rows >= 16384:
        return [((128, columns, chunk), 8), *others]
    while anchors > 16 and rows < 128 * anchors:
        anchors //= 2
    return [((anchors, columns, chunk), 4), *others]


def _kind(x: Inputs, tiles: list[tuple[Tile, int]]) -> tuple[object, ...]:
    """What the fastest tile depends on, for autotuning."""
    tile, _ = tiles[0]
    return x.panel.dtype, x.panel.device, triton.next_power_of_2(x.pairs), *tile[:4]
