"""The kernels of ``soft_assignment_pool``, of given rows or of rows gathered by id.

A program pools one sequence, for all views at once: their interests lie in one matrix [V * m, d], rows v * m + k, and
an item adds to it with the weights p_ik of the views it is a member of. Everything is float32 whatever the inputs. The
algebra is in docs/kernels.md, the schedule in docs/triton.md.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.kernels.rows import LOG2_E, load_chunk, product, rounded, row_scales, store_chunk
from cmi_fast.triton.kernels.sequences import sequence


class Inputs(NamedTuple):
    """The inputs of one call as the kernels take them. Positions count the items of all sequences, padding too."""

    rows: Tensor  # [*, D]: the items, or a table
    ids: Tensor | None  # [T], the row at each position; None: the position itself
    categories: Tensor  # [M, D]
    lengths: Tensor | None  # [B]
    offsets: Tensor | None  # [B + 1]
    temperature: Tensor  # []
    views: Tensor | None  # [V, T]
    batch: int
    positions: int
    length: int  # of a padded sequence
    table: int  # number of rows


class Tile(NamedTuple):
    """Sizes that kernels are compiled for: m, V, d, and items, views, categories, dimensions of a tile."""

    M: int
    V: int
    D: int
    ITEMS: int
    VIEWS: int
    CATEGORIES: int
    CHUNK: int


@triton.jit
def _rows_at(x, position, inside):
    """The rows at these positions, and where they may be read."""
    row = position
    known = inside
    if x.ids is not None:
        row = tl.load(x.ids + position, mask=inside, other=0).to(tl.int64)
        known = inside & (row >= 0) & (row < x.table)
    return row, known


@triton.jit
def _items(x, row, known, start, temperature, TILE: tl.constexpr):
    """A chunk of these rows, [ITEMS, CHUNK]; under autocast a table keeps its dtype, and rows take the categories'."""
    values = load_chunk(x.rows, row, known, start, TILE.D, TILE.CHUNK)
    return rounded(values, x.categories.dtype.element_ty).to(temperature.dtype)


@triton.jit
def _category_scales(x, k, temperature, TILE: tl.constexpr):
    dtype: tl.constexpr = x.categories.dtype.element_ty
    return row_scales(x.categories, k, k < TILE.M, dtype, temperature.dtype, TILE.D, TILE.CHUNK)


@triton.jit
def _assign(x, row, known, category_scale, category_inverse, temperature, TILE: tl.constexpr):
    """Of a block of items: their scales, cosines [ITEMS, CATEGORIES] and the assignment p."""
    k = tl.arange(0, TILE.CATEGORIES)
    scale, inverse = row_scales(
        x.rows, row, known, x.categories.dtype.element_ty, temperature.dtype, TILE.D, TILE.CHUNK
    )
    cosine = tl.full([TILE.ITEMS, TILE.CATEGORIES], 0.0, temperature.dtype)
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        items = _items(x, row, known, start, temperature, TILE)
        categories = load_chunk(x.categories, k, k < TILE.M, start, TILE.D, TILE.CHUNK).to(temperature.dtype)
        cosine = product(items * scale[:, None], tl.trans(categories * category_scale[:, None]), cosine)
    cosine *= inverse[:, None] * category_inverse[None, :]
    score = tl.where((k < TILE.M)[None, :], cosine * (LOG2_E / temperature), -float("inf"))
    exponential = tl.exp2(score - tl.max(score, 1)[:, None])
    return scale, inverse, cosine, exponential / tl.sum(exponential, 1)[:, None]


@triton.jit
def _membership(x, position, inside, TILE: tl.constexpr):
    """Which views each item counts in, [ITEMS, VIEWS]."""
    view = tl.arange(0, TILE.VIEWS)
    if x.views is None:
        member = inside[:, None] & (view == 0)[None, :]
    else:
        places = x.views + view[None, :].to(tl.int64) * x.positions + position[:, None]
        member = tl.load(places, mask=inside[:, None] & (view < TILE.V)[None, :], other=0) != 0
    return member


@triton.jit
def _weights(p, member, TILE: tl.constexpr):
    """p_ik in the views that item i is a member of, zero in the others: [ITEMS, VIEWS * CATEGORIES]."""
    return tl.reshape(tl.where(member[:, :, None], p[:, None, :], 0.0), [TILE.ITEMS, TILE.VIEWS * TILE.CATEGORIES])


@triton.jit
def _interest_rows(x, b, TILE: tl.constexpr):
    """Where the interests of sequence b are in [V, B, M] for each row of the matrix of sums, and which exist."""
    r = tl.arange(0, TILE.VIEWS * TILE.CATEGORIES)
    view = r // TILE.CATEGORIES
    k = r % TILE.CATEGORIES
    return (view * x.batch + b) * TILE.M + k, (k < TILE.M) & (view < TILE.V)


@triton.jit
def forward_kernel(x, pooled, TILE: tl.constexpr):
    """All interests of one sequence, for one chunk of dimensions."""
    temperature = tl.load(x.temperature)
    b = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    begin, end = sequence(x, b)
    k = tl.arange(0, TILE.CATEGORIES)
    category_scale, category_inverse = _category_scales(x, k, temperature, TILE)
    sums = tl.full([TILE.VIEWS * TILE.CATEGORIES, TILE.CHUNK], 0.0, temperature.dtype)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        row, known = _rows_at(x, position, inside)
        scale, inverse, _, p = _assign(x, row, known, category_scale, category_inverse, temperature, TILE)
        p = tl.where((inside & ~known)[:, None], float("nan"), p)  # an id out of range that nobody has checked
        weights = _weights(p, _membership(x, position, inside, TILE), TILE)
        items = _items(x, row, known, chunk, temperature, TILE)
        sums = product(tl.trans(weights), items * scale[:, None] * inverse[:, None], sums)
    place, exists = _interest_rows(x, b, TILE)
    store_chunk(pooled, place, exists, chunk, sums, TILE.D, TILE.CHUNK)


@triton.jit
def backward_kernel(
    x,
    pooled_grad,  # [V, B, M, D]
    rows_grad,  # [T, D] or None
    category_parts,  # [B, M, D] or None: the gradient of the unit categories
    temperature_parts,  # [B] or None
    TILE: tl.constexpr,
):
    """What one sequence gives to the gradients, for one chunk of dimensions."""
    temperature = tl.load(x.temperature)
    b = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * TILE.CHUNK
    begin, end = sequence(x, b)
    k = tl.arange(0, TILE.CATEGORIES)
    category_scale, category_inverse = _category_scales(x, k, temperature, TILE)
    place, exists = _interest_rows(x, b, TILE)
    category_sums = tl.full([TILE.CATEGORIES, TILE.CHUNK], 0.0, temperature.dtype)
    temperature_sums = tl.full([TILE.ITEMS], 0.0, temperature.dtype)
    for start in tl.range(begin, end, TILE.ITEMS, num_stages=1):
        position = tl.arange(0, TILE.ITEMS).to(tl.int64) + start
        inside = position < end
        row, known = _rows_at(x, position, inside)
        scale, inverse, cosine, p = _assign(x, row, known, category_scale, category_inverse, temperature, TILE)
        member = _membership(x, position, inside, TILE)
        # a_ik = v_i . U_k, over the views that the item is a member of
        along = tl.full([TILE.ITEMS, TILE.VIEWS * TILE.CATEGORIES], 0.0, temperature.dtype)
        for other in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
            items = _items(x, row, known, other, temperature, TILE)
            cotangent = load_chunk(pooled_grad, place, exists, other, TILE.D, TILE.CHUNK).to(temperature.dtype)
            along = product(items * scale[:, None], tl.trans(cotangent), along)
        of_views = tl.reshape(along * inverse[:, None], [TILE.ITEMS, TILE.VIEWS, TILE.CATEGORIES])
        a = tl.sum(tl.where(member[:, :, None], of_views, 0.0), 1)
        score_grad = tl.where(inside[:, None], p * (a - tl.sum(p * a, 1)[:, None]) / temperature, 0.0)
        items = _items(x, row, known, chunk, temperature, TILE)
        unit = items * scale[:, None] * inverse[:, None]
        if rows_grad is not None:
            cotangent = load_chunk(pooled_grad, place, exists, chunk, TILE.D, TILE.CHUNK).to(temperature.dtype)
            categories = load_chunk(x.categories, k, k < TILE.M, chunk, TILE.D, TILE.CHUNK).to(temperature.dtype)
            categories = categories * category_scale[:, None] * category_inverse[:, None]
            grad = tl.full([TILE.ITEMS, TILE.CHUNK], 0.0, temperature.dtype)
            grad = product(score_grad, categories, product(_weights(p, member, TILE), cotangent, grad))
            radial = tl.sum(p * a + score_grad * cosine, 1)
            grad = (grad - unit * radial[:, None]) * inverse[:, None] * scale[:, None]
            store_chunk(rows_grad, position, inside, chunk, grad, TILE.D, TILE.CHUNK)
        if category_parts is not None:
            category_sums = product(tl.trans(score_grad), unit, category_sums)
        temperature_sums += tl.sum(score_grad * cosine, 1)
    if category_parts is not None:
        store_chunk(category_parts, b * TILE.M + k, k < TILE.M, chunk, category_sums, TILE.D, TILE.CHUNK)
    if temperature_parts is not None:
        tl.store(temperature_parts + b, tl.sum(temperature_sums, 0), mask=chunk == 0)
