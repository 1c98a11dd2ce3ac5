"""The kernels of ``capsule_routing`` with maps that are the same at every place. The algebra is in docs/kernels.md
("a map that is the same at every place meets sums, not items"), the schedule in docs/triton.md.

Everything is float32 whatever the items.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.kernels.rows import LOG2_E, load_chunk, product, store_chunk
from cmi_fast.triton.kernels.sequences import sequence


class Inputs(NamedTuple):
    """The inputs of one call as the kernels take them. Positions count the items of all sequences, padding too."""

    items: Tensor  # [T, D]
    maps: Tensor  # [MAPS, E, D]
    bias: Tensor | None  # [E]
    logits: Tensor | None  # [T, K]
    active: Tensor | None  # [B]
    lengths: Tensor | None  # [B]
    offsets: Tensor | None  # [B + 1]
    batch: int
    positions: int
    length: int  # of a padded sequence
    iterations: int


class Tile(NamedTuple):
    """Sizes that kernels are compiled for: number of maps, K, e, d, and items, interests, e, d of a tile."""

    MAPS: int
    K: int
    E: int
    D: int
    ITEMS: int
    INTERESTS: int
    OUT: int
    CHUNK: int


@triton.jit
def _items(x, position, inside, start, TILE: tl.constexpr):
    """A chunk of the items at these positions, [ITEMS, CHUNK]."""
    return load_chunk(x.items, position, inside, start, TILE.D, TILE.CHUNK).to(x.maps.dtype.element_ty)


@triton.jit
def _map(x, k, out, start, TILE: tl.constexpr):
    """Rows ``out`` of a chunk of interest k's map, [OUT, CHUNK]."""
    return load_chunk(x.maps, (k % TILE.MAPS) * TILE.E + out, out < TILE.E, start, TILE.D, TILE.CHUNK)


@triton.jit
def _of_row(pointer, row, at, WIDTH: tl.constexpr):
    """The numbers ``at`` of one row of a matrix with WIDTH columns."""
    return tl.load(pointer + row * WIDTH + at, mask=at < WIDTH, other=0.0)


@triton.jit
def _squashing(square):
    """f with v = f(|z|^2) z."""
    return square / ((1 + square) * tl.sqrt(square + 1e-9))


@triton.jit
def _spread_items(x, b, begin, end, iteration, directions, shifts, weights, TILE: tl.constexpr):
    """Each item's weight for each interest, from logits b + x_t . r_k + s_k; the weights' sums over items [INTERESTS].

    r and s are sums over the iterations before, so that no item keeps a logit.
    """
    k = tl.arange(0, TILE.INTERESTS)
    count = TILE.K
    if x.active is not None:
        count = tl.load(x.active + b)
    takes_part = (k < TILE.K) & (k < count)
    totals = tl.full([TILE.INTERESTS], 0.0, shifts.dtype)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        logits = tl.full([TILE.ITEMS, TILE.INTERESTS], 0.0, shifts.dtype)
        if iteration > 0:
            for chunk in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
                rows = load_chunk(directions, b * TILE.K + k, k < TILE.K, chunk, TILE.D, TILE.CHUNK)
                logits = product(_items(x, position, inside, chunk, TILE), tl.trans(rows), logits)
        logits += shifts[None, :]
        if x.logits is not None:
            logits += load_chunk(x.logits, position, inside, 0, TILE.K, TILE.INTERESTS)
        logits = tl.where(takes_part[None, :], logits, -float("inf"))
        exponentials = tl.exp2((logits - tl.max(logits, 1)[:, None]) * LOG2_E)
        spread = tl.where(inside[:, None], exponentials / tl.sum(exponentials, 1)[:, None], 0.0)
        store_chunk(weights, position, inside, 0, spread, TILE.K, TILE.INTERESTS)
        totals += tl.sum(spread, 0)
    return totals


@triton.jit
def _pool_items(x, b, begin, end, weights, pooled, TILE: tl.constexpr):
    """y_k = sum_t w_tk x_t of sequence b."""
    k = tl.arange(0, TILE.INTERESTS)
    for chunk in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        sums = tl.full([TILE.INTERESTS, TILE.CHUNK], 0.0, pooled.dtype.element_ty)
        for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
            position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
            inside = position < end
            spread = load_chunk(weights, position, inside, 0, TILE.K, TILE.INTERESTS)
            sums = product(tl.trans(spread), _items(x, position, inside, chunk, TILE), sums)
        store_chunk(pooled, b * TILE.K + k, k < TILE.K, chunk, sums, TILE.D, TILE.CHUNK)


@triton.jit
def _map_sums(x, b, totals, pooled, sums, TILE: tl.constexpr):
    """z_k = W_k y_k + n_k c of sequence b."""
    for k in range(0, TILE.K):
        for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
            out = first + tl.arange(0, TILE.OUT)
            z = tl.full([TILE.OUT], 0.0, totals.dtype)
            for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
                y = _of_row(pooled, b * TILE.K + k, start + tl.arange(0, TILE.CHUNK), TILE.D)
                z += tl.sum(_map(x, k, out, start, TILE) * y[None, :], 1)
            if x.bias is not None:
                n = tl.sum(tl.where(tl.arange(0, TILE.INTERESTS) == k, totals, 0.0), 0)
                z += n * _of_row(x.bias, 0, out, TILE.E)
            tl.store(sums + (b * TILE.K + k) * TILE.E + out, z, mask=out < TILE.E)


@triton.jit
def _agree(x, b, sums, directions, shifts, TILE: tl.constexpr):
    """Add f W_k' z_k to r_k and f c . z_k to s_k: u_tk . v_k = f (W_k x_t + c) . z_k."""
    for k in range(0, TILE.K):
        square = tl.zeros([], shifts.dtype)
        along_bias = tl.zeros([], shifts.dtype)
        for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
            out = first + tl.arange(0, TILE.OUT)
            z = _of_row(sums, b * TILE.K + k, out, TILE.E)
            square += tl.sum(z * z, 0)
            if x.bias is not None:
                along_bias += tl.sum(z * _of_row(x.bias, 0, out, TILE.E), 0)
        factor = _squashing(square)
        shifts += tl.where(tl.arange(0, TILE.INTERESTS) == k, factor * along_bias, 0.0)
        for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
            at = start + tl.arange(0, TILE.CHUNK)
            r = tl.full([TILE.CHUNK], 0.0, shifts.dtype)
            for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
                out = first + tl.arange(0, TILE.OUT)
                z = _of_row(sums, b * TILE.K + k, out, TILE.E)
                r += tl.sum(_map(x, k, out, start, TILE) * z[:, None], 0)
            r = _of_row(directions, b * TILE.K + k, at, TILE.D) + factor * r
            tl.store(directions + (b * TILE.K + k) * TILE.D + at, r, mask=at < TILE.D)
    return shifts


@triton.jit
def _squash(b, sums, interests, TILE: tl.constexpr):
    """v_k = f z_k of sequence b."""
    k = tl.arange(0, TILE.INTERESTS)
    row = b * TILE.K + k
    square = tl.full([TILE.INTERESTS], 0.0, sums.dtype.element_ty)
    for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
        z = load_chunk(sums, row, k < TILE.K, first, TILE.E, TILE.OUT)
        square += tl.sum(z * z, 1)
    for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
        z = load_chunk(sums, row, k < TILE.K, first, TILE.E, TILE.OUT)
        store_chunk(interests, row, k < TILE.K, first, z * _squashing(square)[:, None], TILE.E, TILE.OUT)


@triton.jit
def forward_kernel(
    x,
    interests,  # [B, K, E]
    weights,  # [T, K]: the last iteration's, as the sums
    sums,  # [B, K, E]: z
    pooled,  # [B, K, D]: y
    directions,  # [B, K, D], zeros: r
    TILE: tl.constexpr,
):
    """All iterations for one sequence. What a step hands to the next lies in memory, so that no size is too large for
    the registers; a barrier makes the whole program see it."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = sequence(x, b)
    shifts = tl.full([TILE.INTERESTS], 0.0, x.maps.dtype.element_ty)
    for iteration in range(0, x.iterations):
        totals = _spread_items(x, b, begin, end, iteration, directions, shifts, weights, TILE)
        tl.debug_barrier()
        _pool_items(x, b, begin, end, weights, pooled, TILE)
        tl.debug_barrier()
        _map_sums(x, b, totals, pooled, sums, TILE)
        tl.debug_barrier()
        if iteration + 1 < x.iterations:
            shifts = _agree(x, b, sums, directions, shifts, TILE)
            tl.debug_barrier()
    _squash(b, sums, interests, TILE)


@triton.jit
def sum_gradient_kernel(sums, rows, interests_grad, sums_grad, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """D = f U + 2 f' (z . U) z for a block of the B * K sums."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    dtype: tl.constexpr = sums.dtype.element_ty
    square = tl.full([BLOCK], 0.0, dtype)
    along = tl.full([BLOCK], 0.0, dtype)
    for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
        z = load_chunk(sums, row, inside, first, TILE.E, TILE.OUT)
        square += tl.sum(z * z, 1)
        along += tl.sum(z * load_chunk(interests_grad, row, inside, first, TILE.E, TILE.OUT).to(dtype), 1)
    inverse = 1 / ((1 + square) * tl.sqrt(square + 1e-9))
    slope = 2 * inverse * (1 / (1 + square) - square / (2 * (square + 1e-9)))
    for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
        z = load_chunk(sums, row, inside, first, TILE.E, TILE.OUT)
        cotangents = load_chunk(interests_grad, row, inside, first, TILE.E, TILE.OUT).to(dtype)
        grads = (square * inverse)[:, None] * cotangents + (slope * along)[:, None] * z
        store_chunk(sums_grad, row, inside, first, grads, TILE.E, TILE.OUT)


@triton.jit
def pooled_gradient_kernel(x, sums_grad, pooled_grad, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """dy_k = W_k' D_k for a block of the sums that one map makes, and one chunk of dimensions."""
    k = tl.program_id(1)
    chunk = tl.program_id(2) * TILE.CHUNK
    row = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)) * TILE.MAPS + k
    inside = row < x.batch * TILE.K
    grads = tl.full([BLOCK, TILE.CHUNK], 0.0, sums_grad.dtype.element_ty)
    for first in tl.range(0, TILE.E, TILE.OUT, num_stages=1):
        out = first + tl.arange(0, TILE.OUT)
        rows = load_chunk(sums_grad, row, inside, first, TILE.E, TILE.OUT)
        grads = product(rows, _map(x, k, out, chunk, TILE), grads)
    store_chunk(pooled_grad, row, inside, chunk, grads, TILE.D, TILE.CHUNK)


@triton.jit
def item_gradient_kernel(x, weights, pooled_grad, items_grad, TILE: tl.constexpr):
    """dx_t = sum_k w_tk dy_k of one sequence, for one chunk of dimensions."""
    b = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    begin, end = sequence(x, b)
    k = tl.arange(0, TILE.INTERESTS)
    rows = load_chunk(pooled_grad, b * TILE.K + k, k < TILE.K, chunk, TILE.D, TILE.CHUNK)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        spread = load_chunk(weights, position, inside, 0, TILE.K, TILE.INTERESTS)
        grads = product(spread, rows, tl.full([TILE.ITEMS, TILE.CHUNK], 0.0, spread.dtype))
        store_chunk(items_grad, position, inside, chunk, grads, TILE.D, TILE.CHUNK)


@triton.jit
def map_gradient_kernel(x, pooled, sums_grad, map_parts, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """D_k y_k' of every parts-th block of the sums that one map makes, for one tile of it: [parts, MAPS, E, D]."""
    part = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    chunks: tl.constexpr = (TILE.D + TILE.CHUNK - 1) // TILE.CHUNK
    first = tl.program_id(2) // chunks * TILE.OUT
    chunk = tl.program_id(2) % chunks * TILE.CHUNK
    grads = tl.full([TILE.OUT, TILE.CHUNK], 0.0, pooled.dtype.element_ty)
    for start in range(part * BLOCK, x.batch * (TILE.K // TILE.MAPS), tl.num_programs(0) * BLOCK):
        row = (start + tl.arange(0, BLOCK)) * TILE.MAPS + k
        inside = row < x.batch * TILE.K
        cotangents = load_chunk(sums_grad, row, inside, first, TILE.E, TILE.OUT)
        rows = load_chunk(pooled, row, inside, chunk, TILE.D, TILE.CHUNK)
        grads = product(tl.trans(cotangents), rows, grads)
    out = first + tl.arange(0, TILE.OUT)
    to = (part * TILE.MAPS + k) * TILE.E + out
    store_chunk(map_parts, to, out < TILE.E, chunk, grads, TILE.D, TILE.CHUNK)


@triton.jit
def bias_gradient_kernel(x, weights, sums_grad, bias_parts, TILE: tl.constexpr):
    """sum_k n_k D_k of one sequence, for one tile: [B, E]."""
    b = tl.program_id(0).to(tl.int64)
    out = tl.program_id(1) * TILE.OUT
    begin, end = sequence(x, b)
    k = tl.arange(0, TILE.INTERESTS)
    totals = tl.full([TILE.INTERESTS], 0.0, sums_grad.dtype.element_ty)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        totals += tl.sum(load_chunk(weights, position, position < end, 0, TILE.K, TILE.INTERESTS), 0)
    rows = load_chunk(sums_grad, b * TILE.K + k, k < TILE.K, out, TILE.E, TILE.OUT)
    at = out + tl.arange(0, TILE.OUT)
    tl.store(bias_parts + b * TILE.E + at, tl.sum(rows * totals[:, None], 0), mask=at < TILE.E)
