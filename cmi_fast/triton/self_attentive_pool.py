"""``self_attentive_pool`` in Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.triton.kernels.self_attentive_pool import (
    Inputs,
    Tile,
    item_gradient_kernel,
    parameter_gradient_kernel,
    place_gradient_kernel,
    pool_kernel,
    score_gradient_kernel,
    score_kernel,
)
from cmi_fast.triton.launch import chunk_size, launch
from cmi_fast.triton.rows import unwanted
from cmi_fast.triton.tuning import run_tuned

BLOCK_ITEMS = 16
WARPS = 8  # with four the items' gradients do not fit the registers, which test_triton_compiles watches
SIZES_TO_TRY = ((16, 4), (32, 4), (32, 8))  # items and warps that autotuning tries
LARGEST_SUMS = 4096  # numbers of a tile that a program can keep in registers
PARTS = 64  # at most so many sums of the parameters' gradients, which are added up afterwards
BLOCK_SEQUENCES = 32


def forward(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Interests [B, K, d], and the attention [rows, K], which is not written beyond the lengths."""
    x, tile = _prepare(items, weight, queries, bias, positions, lengths, offsets)
    scores = x.weight.new_empty(x.positions, tile.K)
    _launch("scores", score_kernel, (x.batch,), x, tile, scores)
    attention = torch.empty_like(scores)
    pooled = items.new_empty(x.batch, tile.K, tile.D)
    _launch("pool", pool_kernel, (x.batch, triton.cdiv(tile.D, tile.CHUNK)), x, tile, scores, attention, pooled)
    return pooled, attention


def backward(
    pooled_grad: Tensor,
    attention: Tensor,
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    items_grad: bool,
    weight_grad: bool,
    queries_grad: bool,
    bias_grad: bool,
    positions_grad: bool,
) -> tuple[Tensor, ...]:
    x, tile = _prepare(items, weight, queries, bias, positions, lengths, offsets)
    pooled_grad = pooled_grad.contiguous()
    chunks = triton.cdiv(tile.D, tile.CHUNK)
    scores_grad = torch.empty_like(attention)
    _launch("score gradients", score_gradient_kernel, (x.batch,), x, tile, pooled_grad, attention, scores_grad)

    of_items = torch.zeros_like(items, memory_format=torch.contiguous_format) if items_grad else None
    of_keys = weight.new_empty(x.items.shape) if positions_grad else None
    if items_grad or positions_grad:
        arguments = pooled_grad, attention, scores_grad, of_items, of_keys
        _launch("item gradients", item_gradient_kernel, (x.batch, chunks), x, tile, *arguments)

    parts = min(PARTS, x.batch)
    wanted = (weight, weight_grad), (bias, bias_grad), (queries, queries_grad)
    sums = [p.new_empty(parts, *p.shape) if p is not None and want else None for p, want in wanted]
    if weight_grad or bias_grad or queries_grad:
        # Only the weight's gradient has dimensions to go through.
        grid = parts, triton.cdiv(tile.H, tile.HIDDEN), chunks if weight_grad else 1
        _launch("parameter gradients", parameter_gradient_kernel, grid, x, tile, scores_grad, *sums)
    of_weight, of_bias, of_queries = (None if s is None else s.sum(0) for s in sums)

    of_positions = None
    if x.places is not None and positions_grad:
        of_positions = torch.empty_like(x.places)
        sizes = {"BLOCK": BLOCK_SEQUENCES, "TILE": tile}
        launch(place_gradient_kernel, (x.place_count, chunks), x, of_keys, of_positions, **sizes)
    gradients = of_items, of_weight, of_queries, of_bias, of_positions
    return tuple(unwanted(items) if gradient is None else gradient for gradient in gradients)


def _prepare(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Inputs, Tile]:
    shape = items.shape[:-1]
    hidden, d = weight.shape
    interests = len(queries)
    padded = max(16, triton.next_power_of_2(interests))  # a matrix product sums over at least 16
    largest = max(16, min(64, LARGEST_SUMS // padded))
    tile = Tile(interests, hidden, d, BLOCK_ITEMS, padded, chunk_size(hidden, largest), chunk_size(d, largest))
    inputs = Inputs(
        items.contiguous(),
        weight.contiguous(),
        queries.contiguous(),
        None if bias is None else bias.contiguous(),
        None if positions is None else positions.contiguous(),
        None if lengths is None else lengths.contiguous(),
        None if offsets is None else offsets.contiguous(),
        shape[0] if offsets is None else len(offsets) - 1,
        shape.numel(),
        shape[-1],
        0 if positions is None else len(positions),
    )
    return inputs, tile


def _launch(name: str, kernel: object, grid: tuple[int, ...], x: Inputs, tile: Tile, *tensors: Tensor | None) -> None:
    def run(items: int, warps: int) -> None:
        launch(kernel, grid, x, *tensors, TILE=tile._replace(ITEMS=items), num_warps=warps)

    counts = triton.next_power_of_2(x.batch), triton.next_power_of_2(x.positions)
    given = [tensor is not None for tensor in (x.bias, x.places, *tensors)]
    kind = "self_attentive_pool", name, x.items.dtype, x.items.device, tile, *given, *counts
    run_tuned(kind, [(BLOCK_ITEMS, WARPS), *SIZES_TO_TRY], run)
