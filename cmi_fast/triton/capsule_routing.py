"""``capsule_routing`` in Triton, with maps that are the same at every place."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.triton.kernels.capsule_routing import (
    Inputs,
    Tile,
    bias_gradient_kernel,
    forward_kernel,
    item_gradient_kernel,
    map_gradient_kernel,
    pooled_gradient_kernel,
    sum_gradient_kernel,
)
from cmi_fast.triton.launch import chunk_size, launch
from cmi_fast.triton.rows import unwanted
from cmi_fast.triton.tuning import run_tuned

BLOCK_ITEMS = 16
WARPS = 8  # with four a gradient does not fit the registers, which test_triton_compiles watches
BLOCK_SUMS = 16
SIZES_TO_TRY = ((16, 4), (32, 4), (32, 8))  # items and warps that autotuning tries
LARGEST_SUMS = 4096  # numbers of a tile that a program can keep in registers
PARTS = 64  # at most so many sums of the maps' gradient, which are added up afterwards


def forward(
    items: Tensor,
    maps: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    active: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    interests: int,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Interests [B, K, e]; of the last iteration the weights [rows, K], which are not written beyond the lengths, and
    the sums of mapped [B, K, e] and of plain items [B, K, d]."""
    x, tile = _prepare(items, maps, bias, logits, active, lengths, offsets, interests, iterations)
    result = items.new_empty(x.batch, tile.K, tile.E)
    weights = maps.new_empty(x.positions, tile.K)
    sums = maps.new_empty(result.shape)
    pooled = maps.new_empty(x.batch, tile.K, tile.D)
    directions = torch.zeros_like(pooled)
    _launch("forward", forward_kernel, (x.batch,), x, tile, result, weights, sums, pooled, directions)
    return result, weights, sums, pooled


def backward(
    interests_grad: Tensor,
    weights: Tensor,
    sums: Tensor,
    pooled: Tensor,
    items: Tensor,
    maps: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    active: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    interests: int,
    iterations: int,
    items_grad: bool,
    maps_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, ...]:
    x, tile = _prepare(items, maps, bias, logits, active, lengths, offsets, interests, iterations)
    rows = x.batch * tile.K
    outs, chunks = triton.cdiv(tile.E, tile.OUT), triton.cdiv(tile.D, tile.CHUNK)
    blocks = triton.cdiv(rows // tile.MAPS, BLOCK_SUMS)
    sizes = {"BLOCK": BLOCK_SUMS, "TILE": tile, "num_warps": WARPS}
    sums_grad = torch.empty_like(sums)
    grid = (triton.cdiv(rows, BLOCK_SUMS),)
    launch(sum_gradient_kernel, grid, sums, rows, interests_grad.contiguous(), sums_grad, **sizes)

    of_items, of_maps, of_bias = None, None, None
    if items_grad:
        pooled_grad = torch.empty_like(pooled)
        launch(pooled_gradient_kernel, (blocks, tile.MAPS, chunks), x, sums_grad, pooled_grad, **sizes)
        of_items = torch.zeros_like(items, memory_format=torch.contiguous_format)
        _launch("item gradients", item_gradient_kernel, (x.batch, chunks), x, tile, weights, pooled_grad, of_items)
    if maps_grad:
        parts = maps.new_empty(min(PARTS, blocks), *maps.shape)
        launch(map_gradient_kernel, (len(parts), tile.MAPS, outs * chunks), x, pooled, sums_grad, parts, **sizes)
        of_maps = parts.sum(0)
    if bias_grad:
        parts = maps.new_empty(x.batch, tile.E)
        _launch("bias gradient", bias_gradient_kernel, (x.batch, outs), x, tile, weights, sums_grad, parts)
        of_bias = parts.sum(0)
    return tuple(unwanted(items) if gradient is None else gradient for gradient in (of_items, of_maps, of_bias))


def _prepare(
    items: Tensor,
    maps: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    active: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    interests: int,
    iterations: int,
) -> tuple[Inputs, Tile]:
    shape = items.shape[:-1]
    places, count, e, d = maps.shape
    if places != 1:
        raise ValueError(f"maps: there is no Triton kernel for maps by place, found {list(maps.shape)}")
    padded = max(16, triton.next_power_of_2(interests))  # a matrix product sums over at least 16
    largest = max(16, min(64, LARGEST_SUMS // padded))
    tile = Tile(count, interests, e, d, BLOCK_ITEMS, padded, chunk_size(e, largest), chunk_size(d, largest))
    inputs = Inputs(
        items.contiguous(),
        maps.contiguous(),
        None if bias is None else bias.contiguous(),
        None if logits is None else logits.contiguous(),
        None if active is None else active.contiguous(),
        None if lengths is None else lengths.contiguous(),
        None if offsets is None else offsets.contiguous(),
        shape[0] if offsets is None else len(offsets) - 1,
        shape.numel(),
        shape[-1],
        iterations,
    )
    return inputs, tile


def _launch(name: str, kernel: object, grid: tuple[int, ...], x: Inputs, tile: Tile, *tensors: Tensor) -> None:
    def run(items: int, warps: int) -> None:
        launch(kernel, grid, x, *tensors, TILE=tile._replace(ITEMS=items), num_warps=warps)

    counts = triton.next_power_of_2(x.batch), triton.next_power_of_2(x.positions)
    given = [tensor is not None for tensor in (x.bias, x.logits, x.active)]
    kind = "capsule_routing", name, x.items.dtype, x.items.device, tile, *given, *counts
    run_tuned(kind, [(BLOCK_ITEMS, WARPS), *SIZES_TO_TRY], run)
