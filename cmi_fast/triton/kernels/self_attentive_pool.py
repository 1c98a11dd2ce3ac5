"""The kernels of ``self_attentive_pool``. The algebra is in docs/kernels.md, the schedule in docs/triton.md.

The hidden layer, the largest thing here, exists for a block of items and a tile of its columns at a time. Everything is
float32 whatever the items.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.kernels.rows import LOG2_E, load_chunk, product, store_chunk, tanh
from cmi_fast.triton.kernels.sequences import sequence


class Inputs(NamedTuple):
    """The inputs of one call as the kernels take them. Positions count the items of all sequences, padding too."""

    items: Tensor  # [T, D]
    weight: Tensor  # [H, D]
    queries: Tensor  # [K, H]
    bias: Tensor | None  # [H]
    places: Tensor | None  # [P, D]: what a place adds to its item's key
    lengths: Tensor | None  # [B]
    offsets: Tensor | None  # [B + 1]
    batch: int
    positions: int
    length: int  # of a padded sequence
    place_count: int


class Tile(NamedTuple):
    """Sizes that kernels are compiled for: K, h, d, and items, interests, hidden columns, dimensions of a tile."""

    K: int
    H: int
    D: int
    ITEMS: int
    INTERESTS: int
    HIDDEN: int
    CHUNK: int


@triton.jit
def _items(x, position, inside, start, TILE: tl.constexpr):
    """A chunk of the items at these positions, [ITEMS, CHUNK]."""
    return load_chunk(x.items, position, inside, start, TILE.D, TILE.CHUNK).to(x.weight.dtype.element_ty)


@triton.jit
def _keys(x, position, begin, inside, start, TILE: tl.constexpr):
    """A chunk of their keys: items, to which their place in the sequence that starts at ``begin`` adds."""
    keys = _items(x, position, inside, start, TILE)
    if x.places is not None:
        place = position - begin
        known = inside & (place < x.place_count)
        keys += load_chunk(x.places, place, known, start, TILE.D, TILE.CHUNK)
        keys = tl.where((inside & ~known)[:, None], float("nan"), keys)  # too long a sequence, unchecked
    return keys


@triton.jit
def _hidden(x, position, begin, inside, column, TILE: tl.constexpr):
    """These columns of the items' hidden layer, [ITEMS, HIDDEN]."""
    sums = tl.full([TILE.ITEMS, TILE.HIDDEN], 0.0, x.weight.dtype.element_ty)
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        keys = _keys(x, position, begin, inside, start, TILE)
        weight = load_chunk(x.weight, column, column < TILE.H, start, TILE.D, TILE.CHUNK)
        sums = product(keys, tl.trans(weight), sums)
    if x.bias is not None:
        sums += tl.load(x.bias + column, mask=column < TILE.H, other=0.0)[None, :]
    return tanh(sums)


@triton.jit
def _queries(x, column, TILE: tl.constexpr):
    """These columns of the queries, [INTERESTS, HIDDEN]."""
    k = tl.arange(0, TILE.INTERESTS)
    mask = (k < TILE.K)[:, None] & (column < TILE.H)[None, :]
    return tl.load(x.queries + k[:, None] * TILE.H + column[None, :], mask=mask, other=0.0)


@triton.jit
def _of_interests(values, position, inside, TILE: tl.constexpr):
    """The rows of ``values`` [T, K] at these positions, [ITEMS, INTERESTS]."""
    return load_chunk(values, position, inside, 0, TILE.K, TILE.INTERESTS)


@triton.jit
def score_kernel(x, scores, TILE: tl.constexpr):
    """The scores [T, K] of one sequence's items."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = sequence(x, b)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        block = tl.full([TILE.ITEMS, TILE.INTERESTS], 0.0, x.weight.dtype.element_ty)
        for first in tl.range(0, TILE.H, TILE.HIDDEN, num_stages=1):
            column = tl.arange(0, TILE.HIDDEN) + first
            hidden = _hidden(x, position, begin, inside, column, TILE)
            block = product(hidden, tl.trans(_queries(x, column, TILE)), block)
        store_chunk(scores, position, inside, 0, block, TILE.K, TILE.INTERESTS)


@triton.jit
def _softmax_constants(x, scores, begin, end, TILE: tl.constexpr):
    """The largest score of each interest in a sequence and the sum of what remains, both [INTERESTS]."""
    dtype: tl.constexpr = x.weight.dtype.element_ty
    shift = tl.full([TILE.INTERESTS], -float("inf"), dtype)
    total = tl.full([TILE.INTERESTS], 0.0, dtype)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        block = tl.where(inside[:, None], _of_interests(scores, position, inside, TILE), -float("inf"))
        raised = tl.maximum(shift, tl.max(block, 0))
        total = total * tl.exp2((shift - raised) * LOG2_E) + tl.sum(tl.exp2((block - raised[None, :]) * LOG2_E), 0)
        shift = raised
    return shift, total


@triton.jit
def pool_kernel(x, scores, attention, pooled, TILE: tl.constexpr):
    """From the scores [T, K] the attention [T, K] and, for one chunk of dimensions, the interests [B, K, D]."""
    b = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    begin, end = sequence(x, b)
    shift, total = _softmax_constants(x, scores, begin, end, TILE)
    sums = tl.full([TILE.INTERESTS, TILE.CHUNK], 0.0, x.weight.dtype.element_ty)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        block = _of_interests(scores, position, inside, TILE)
        weights = tl.exp2((block - shift[None, :]) * LOG2_E) / total[None, :]
        weights = tl.where(inside[:, None], weights, 0.0)
        if chunk == 0:
            store_chunk(attention, position, inside, 0, weights, TILE.K, TILE.INTERESTS)
        sums = product(tl.trans(weights), _items(x, position, inside, chunk, TILE), sums)
    k = tl.arange(0, TILE.INTERESTS)
    store_chunk(pooled, b * TILE.K + k, k < TILE.K, chunk, sums, TILE.D, TILE.CHUNK)


@triton.jit
def _cotangents(x, pooled_grad, b, start, TILE: tl.constexpr):
    """A chunk of those of sequence b's interests, [INTERESTS, CHUNK]."""
    k = tl.arange(0, TILE.INTERESTS)
    rows = load_chunk(pooled_grad, b * TILE.K + k, k < TILE.K, start, TILE.D, TILE.CHUNK)
    return rows.to(x.weight.dtype.element_ty)


@triton.jit
def _along(x, pooled_grad, b, position, inside, TILE: tl.constexpr):
    """b_tk = x_t . U_k, [ITEMS, INTERESTS]."""
    along = tl.full([TILE.ITEMS, TILE.INTERESTS], 0.0, x.weight.dtype.element_ty)
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        cotangents = _cotangents(x, pooled_grad, b, start, TILE)
        along = product(_items(x, position, inside, start, TILE), tl.trans(cotangents), along)
    return along


@triton.jit
def score_gradient_kernel(x, pooled_grad, attention, scores_grad, TILE: tl.constexpr):
    """The gradients of one sequence's scores, [T, K]."""
    b = tl.program_id(0).to(tl.int64)
    begin, end = sequence(x, b)
    mean = tl.full([TILE.INTERESTS], 0.0, x.weight.dtype.element_ty)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        weights = _of_interests(attention, position, inside, TILE)
        mean += tl.sum(weights * _along(x, pooled_grad, b, position, inside, TILE), 0)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        weights = _of_interests(attention, position, inside, TILE)
        grads = weights * (_along(x, pooled_grad, b, position, inside, TILE) - mean[None, :])
        store_chunk(scores_grad, position, inside, 0, grads, TILE.K, TILE.INTERESTS)


@triton.jit
def _before_tanh(x, scores_grad, hidden, column, position, inside, TILE: tl.constexpr):
    """The gradients of what goes into the hidden layer's columns, [ITEMS, HIDDEN]."""
    grads = tl.full([TILE.ITEMS, TILE.HIDDEN], 0.0, x.weight.dtype.element_ty)
    grads = product(_of_interests(scores_grad, position, inside, TILE), _queries(x, column, TILE), grads)
    return grads * (1 - hidden * hidden)


@triton.jit
def item_gradient_kernel(
    x,
    pooled_grad,  # [B, K, D]
    attention,  # [T, K]
    scores_grad,  # [T, K]
    items_grad,  # [T, D] or None
    keys_grad,  # [T, D] or None: the part that comes through the scores
    TILE: tl.constexpr,
):
    """The gradients of one sequence's items, for one chunk of dimensions."""
    b = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    begin, end = sequence(x, b)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        grads = tl.full([TILE.ITEMS, TILE.CHUNK], 0.0, x.weight.dtype.element_ty)
        for first in tl.range(0, TILE.H, TILE.HIDDEN, num_stages=1):
            column = tl.arange(0, TILE.HIDDEN) + first
            hidden = _hidden(x, position, begin, inside, column, TILE)
            before = _before_tanh(x, scores_grad, hidden, column, position, inside, TILE)
            weight = load_chunk(x.weight, column, column < TILE.H, chunk, TILE.D, TILE.CHUNK)
            grads = product(before, weight, grads)
        if keys_grad is not None:
            store_chunk(keys_grad, position, inside, chunk, grads, TILE.D, TILE.CHUNK)
        if items_grad is not None:
            weights = _of_interests(attention, position, inside, TILE)
            grads = product(weights, _cotangents(x, pooled_grad, b, chunk, TILE), grads)
            store_chunk(items_grad, position, inside, chunk, grads, TILE.D, TILE.CHUNK)


@triton.jit
def parameter_gradient_kernel(
    x,
    scores_grad,  # [T, K]
    weight_parts,  # [parts, H, D] or None
    bias_parts,  # [parts, H] or None
    query_parts,  # [parts, K, H] or None
    TILE: tl.constexpr,
):
    """What every parts-th sequence gives to some columns of the hidden layer, and to one chunk of the weight there."""
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE.HIDDEN + tl.arange(0, TILE.HIDDEN)
    chunk = tl.program_id(2) * TILE.CHUNK
    dtype: tl.constexpr = x.weight.dtype.element_ty
    of_weight = tl.full([TILE.HIDDEN, TILE.CHUNK], 0.0, dtype)
    of_bias = tl.full([TILE.HIDDEN], 0.0, dtype)
    of_queries = tl.full([TILE.INTERESTS, TILE.HIDDEN], 0.0, dtype)
    for b in range(part, x.batch, tl.num_programs(0)):
        begin, end = sequence(x, b)
        for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
            position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
            inside = position < end
            hidden = _hidden(x, position, begin, inside, column, TILE)
            before = _before_tanh(x, scores_grad, hidden, column, position, inside, TILE)
            if weight_parts is not None:
                of_weight = product(tl.trans(before), _keys(x, position, begin, inside, chunk, TILE), of_weight)
            of_bias += tl.sum(before, 0)
            if query_parts is not None:
                grads = _of_interests(scores_grad, position, inside, TILE)
                of_queries = product(tl.trans(grads), hidden, of_queries)
    within = column < TILE.H
    if weight_parts is not None:
        store_chunk(weight_parts, part * TILE.H + column, within, chunk, of_weight, TILE.D, TILE.CHUNK)
    if bias_parts is not None:
        tl.store(bias_parts + part * TILE.H + column, of_bias, mask=within & (chunk == 0))
    if query_parts is not None:
        k = tl.arange(0, TILE.INTERESTS)
        mask = ((k < TILE.K) & (chunk == 0))[:, None] & within[None, :]
        tl.store(query_parts + (part * TILE.K + k)[:, None] * TILE.H + column[None, :], of_queries, mask=mask)


@triton.jit
def place_gradient_kernel(x, keys_grad, places_grad, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The gradient of what one place adds: the sum over the sequences that reach it, for one chunk of dimensions."""
    place = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    sums = tl.full([1, TILE.CHUNK], 0.0, x.weight.dtype.element_ty)
    for start in range(0, x.batch, BLOCK):
        b = tl.arange(0, BLOCK).to(tl.int64) + start
        begin, end = sequence(x, tl.minimum(b, x.batch - 1))
        reaches = (b < x.batch) & (begin + place < end)
        sums += tl.sum(load_chunk(keys_grad, begin + place, reaches, chunk, TILE.D, TILE.CHUNK), 0)[None, :]
    row = place + tl.zeros([1], tl.int64)
    store_chunk(places_grad, row, row < x.place_count, chunk, sums, TILE.D, TILE.CHUNK)
