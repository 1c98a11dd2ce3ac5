"""``nt_xent_loss`` in Triton. The algebra is in docs/kernels.md, the schedule in docs/triton.md.

Everything works on the panel [2N, d], the rows of ``first`` then of ``second``, each times a power of two in its own
dtype, and ``inverse`` [2N], which makes unit rows of them: matrix products see the inputs' own digits, everything else
is float32. Exponentials are taken to base 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.launch import half_range, launch, tile_sizes
from cmi_fast.triton.rows import (
    LN_2,
    LOG2_E,
    as_pointer,
    load_chunk,
    log_of_sum,
    product,
    product_in_two,
    rounded,
    row_scales,
    softplus,
    store_chunk,
    unit_rows_backward,
    unwanted,
)

# Unit rows bound the scores by 1/t: from this t on, all anchors may share the shift 1/t in float32.
SHARED_SHIFT_FROM = 0.025


class _Inputs(NamedTuple):
    """The inputs of one call as the kernels take them."""

    panel: Tensor  # [2N, D]
    inverse: Tensor  # [2N]
    temperature: Tensor  # []
    pairs: int


class _Tile(NamedTuple):
    """What kernels are compiled for: the mode, d, and anchors, columns, dimensions of a tile."""

    CROSS_VIEW: bool
    SHARED_SHIFT: bool
    D: int
    ANCHORS: int
    COLUMNS: int
    CHUNK: int


def forward(
    first: Tensor,
    second: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    negatives: str,
    direction: str,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Losses [2N] or [N] of the anchors, and the log-sum-exp over their negatives [2N], infinite for other rows."""
    x, tile, warps = _prepare(first, second, temperature, temperature_tensor, negatives, normalize)
    anchor_views = 2 if direction == "both" else 1
    losses = x.inverse.new_empty(anchor_views * x.pairs)
    log_sum = x.inverse.new_full((2 * x.pairs,), torch.inf)
    grid = triton.cdiv(x.pairs, tile.ANCHORS), anchor_views
    launch(_forward_kernel, grid, x, log_sum, losses, TILE=tile, num_warps=warps)
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
    first_grad: bool,
    second_grad: bool,
    temperature_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, tile, warps = _prepare(first, second, temperature, temperature_tensor, negatives, normalize)
    losses_grad, unscale = half_range(losses_grad, first.dtype)
    weight = torch.zeros_like(log_sum)
    blocks = triton.cdiv(x.pairs, tile.ANCHORS)
    anchor_views = 2 if direction == "both" else 1
    launch(_anchor_weight_kernel, (blocks, anchor_views), x, losses_grad.contiguous(), log_sum, weight, TILE=tile)
    unit_grad = torch.empty_like(x.panel, dtype=log_sum.dtype)
    views = [temperature_grad or first_grad, temperature_grad or second_grad]
    first_view = 0 if views[0] else 1
    grid = blocks, sum(views), triton.cdiv(tile.D, tile.CHUNK)
    launch(_gradient_kernel, grid, x, weight, log_sum, unscale, unit_grad, first_view, TILE=tile, num_warps=warps)
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
) -> tuple[_Inputs, _Tile, int]:
    """Inputs, tile and number of warps."""
    pairs, d = first.shape
    (anchors, columns, chunk), warps = _tile_and_warps(2 * pairs, d, first.dtype)
    shared_shift = normalize and temperature_tensor is None and temperature >= SHARED_SHIFT_FROM
    tile = _Tile(negatives == "cross_view", shared_shift, d, anchors, columns, chunk)
    pointer = as_pointer(temperature, temperature_tensor, first)
    inverse = pointer.new_ones(2 * pairs)
    if not normalize:
        return _Inputs(torch.cat([first, second]), inverse, pointer, pairs), tile, warps
    panel = first.new_empty(2 * pairs, d)
    arguments = first.contiguous(), second.contiguous(), panel, inverse, pairs
    launch(_panel_kernel, (triton.cdiv(pairs, 32), 2), *arguments, D=d, BLOCK=32, CHUNK=chunk)
    return _Inputs(panel, inverse, pointer, pairs), tile, warps


def _tile_and_warps(rows: int, d: int, dtype: torch.dtype) -> tuple[tuple[int, int, int], int]:
    """Anchors, columns and dimensions of a tile, and its warps: as many anchors as leave work for 132 processors."""
    anchors, columns, chunk = tile_sizes(dtype, d)
    if dtype.itemsize == 2 and rows >= 16384:
        return (128, columns, chunk), 8
    while anchors > 16 and rows < 128 * anchors:
        anchors //= 2
    return (anchors, columns, chunk), 4


@triton.jit
def _panel_kernel(
    first,  # [N, D]
    second,  # [N, D]
    panel,  # [2N, D]
    inverse,  # [2N]
    pairs,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    view = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < pairs
    source = first if view == 0 else second
    scale, inverse_norm = row_scales(source, row, inside, panel.dtype.element_ty, inverse.dtype.element_ty, D, CHUNK)
    tl.store(inverse + view * pairs + row, inverse_norm, mask=inside)
    for start in tl.range(0, D, CHUNK, num_stages=1):
        values = load_chunk(source, row, inside, start, D, CHUNK).to(scale.dtype) * scale[:, None]
        store_chunk(panel, view * pairs + row, inside, start, values, D, CHUNK)


@triton.jit
def _pairs_of(x, TILE: tl.constexpr):
    """The pairs of this program's anchors, [ANCHORS], and which exist."""
    pair = tl.program_id(0).to(tl.int64) * TILE.ANCHORS + tl.arange(0, TILE.ANCHORS)
    return pair, pair < x.pairs


@triton.jit
def _column_range(x, view, TILE: tl.constexpr):
    """The rows that hold the negatives of a view's anchors: [first, last)."""
    if TILE.CROSS_VIEW:
        first = (1 - view) * x.pairs
        last = first + x.pairs
    else:
        first = 0 * view
        last = first + 2 * x.pairs
    return first, last


@triton.jit
def _scores(x, anchor, anchor_inside, anchors, column, column_inside, columns, TILE: tl.constexpr):
    """Products of panel rows, [ANCHORS, COLUMNS]; ``anchors`` and ``columns`` are their first chunks, already read."""
    scores = tl.full([TILE.ANCHORS, TILE.COLUMNS], 0.0, x.inverse.dtype.element_ty)
    scores = product(anchors, tl.trans(columns), scores)
    for start in tl.range(TILE.CHUNK, TILE.D, TILE.CHUNK, num_stages=1):
        more_anchors = load_chunk(x.panel, anchor, anchor_inside, start, TILE.D, TILE.CHUNK)
        more_columns = load_chunk(x.panel, column, column_inside, start, TILE.D, TILE.CHUNK)
        scores = product(more_anchors, tl.trans(more_columns), scores)
    return scores


@triton.jit
def _positive_scores(x, sharpness, anchor, positive, inside, TILE: tl.constexpr):
    """Each anchor's score with its positive, [ANCHORS]."""
    score = tl.full([TILE.ANCHORS], 0.0, x.inverse.dtype.element_ty)
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        anchors = load_chunk(x.panel, anchor, inside, start, TILE.D, TILE.CHUNK).to(score.dtype)
        positives = load_chunk(x.panel, positive, inside, start, TILE.D, TILE.CHUNK).to(score.dtype)
        score += tl.sum(anchors * positives, 1)
    inverse_anchor = tl.load(x.inverse + anchor, mask=inside, other=0.0)
    inverse_positive = tl.load(x.inverse + positive, mask=inside, other=0.0)
    return score * (inverse_anchor * sharpness) * inverse_positive


@triton.jit
def _is_negative(x, pair, column, last):
    """[ANCHORS, COLUMNS]: neither the anchor itself nor its positive, which are the two rows of its pair."""
    column_pair = column - tl.where(column >= x.pairs, x.pairs, 0)
    return (column < last)[None, :] & (column_pair[None, :] != pair[:, None])


@triton.jit
def _forward_kernel(
    x,
    log_sum,  # [2N]
    losses,  # [2N] or [N]
    TILE: tl.constexpr,
):
    """Log-sum-exp over the negatives of a block of one view's anchors, columns tile by tile; then their losses."""
    view = tl.program_id(1)
    pair, inside = _pairs_of(x, TILE)
    anchor = view * x.pairs + pair
    positive = (1 - view) * x.pairs + pair
    sharpness = LOG2_E / tl.load(x.temperature)
    factor = tl.load(x.inverse + anchor, mask=inside, other=0.0) * sharpness
    anchors = load_chunk(x.panel, anchor, inside, 0, TILE.D, TILE.CHUNK)
    total = tl.full([TILE.ANCHORS], 0.0, x.inverse.dtype.element_ty)
    shift = total + (sharpness if TILE.SHARED_SHIFT else -float("inf"))
    first, last = _column_range(x, view, TILE)
    for start in range(first, last, TILE.COLUMNS):
        column = tl.arange(0, TILE.COLUMNS).to(tl.int64) + start
        column_inside = column < last
        columns = load_chunk(x.panel, column, column_inside, 0, TILE.D, TILE.CHUNK)
        score = _scores(x, anchor, inside, anchors, column, column_inside, columns, TILE)
        score *= factor[:, None] * tl.load(x.inverse + column, mask=column_inside, other=0.0)[None, :]
        score = tl.where(_is_negative(x, pair, column, last), score, -float("inf"))
        if TILE.SHARED_SHIFT:
            total += tl.sum(tl.exp2(score - shift[:, None]), 1)
        else:
            raised = tl.maximum(shift, tl.max(score, 1))
            finite = tl.where(raised == -float("inf"), 0.0, raised)
            total = total * tl.exp2(shift - finite) + tl.sum(tl.exp2(score - finite[:, None]), 1)
            shift = raised
    log_sums = log_of_sum(shift, total)
    positive_score = _positive_scores(x, sharpness, anchor, positive, inside, TILE) * LN_2
    tl.store(log_sum + anchor, log_sums, mask=inside)
    tl.store(losses + anchor, softplus(log_sums - positive_score), mask=inside)


@triton.jit
def _anchor_weight_kernel(
    x,
    losses_grad,  # [2N] or [N]
    log_sum,  # [2N]
    weight,  # [2N]
    TILE: tl.constexpr,
):
    """b_i = w_i sigmoid(L_i - s_ip): what all gradient terms of anchor i are multiplied with."""
    view = tl.program_id(1)
    pair, inside = _pairs_of(x, TILE)
    anchor = view * x.pairs + pair
    positive = (1 - view) * x.pairs + pair
    positive_score = _positive_scores(x, LOG2_E / tl.load(x.temperature), anchor, positive, inside, TILE) * LN_2
    share = 1 / (1 + tl.exp(positive_score - tl.load(log_sum + anchor, mask=inside, other=0.0)))
    tl.store(weight + anchor, tl.load(losses_grad + anchor, mask=inside, other=0.0) * share, mask=inside)


@triton.jit
def _gradient_kernel(
    x,
    weight,  # [2N]
    log_sum,  # [2N]
    unscale,  # [] or None
    unit_grad,  # [2N, D]
    first_view,
    TILE: tl.constexpr,
):
    """dz_i = (sum_j G_ij z_j - (b_i + b_p) z_p) / t for a block of one view's rows and one chunk of dimensions.

    G_ij = b_i e^(s_ij - L_i) + b_j e^(s_ij - L_j): FlashAttention's forward with Q = K = V = Z and weights that need no
    rescaling, as the L are known. Each program owns its rows, so nothing is added to by two.
    """
    view = tl.program_id(1) + first_view
    chunk = tl.program_id(2) * TILE.CHUNK
    pair, inside = _pairs_of(x, TILE)
    row = view * x.pairs + pair
    positive = (1 - view) * x.pairs + pair
    temperature = tl.load(x.temperature)
    sharpness = LOG2_E / temperature
    row_factor = tl.load(x.inverse + row, mask=inside, other=0.0) * sharpness
    row_weight = tl.load(weight + row, mask=inside, other=0.0)
    row_log_sum = tl.load(log_sum + row, mask=inside, other=0.0) * LOG2_E
    rows = load_chunk(x.panel, row, inside, 0, TILE.D, TILE.CHUNK)
    grad = tl.full([TILE.ANCHORS, TILE.CHUNK], 0.0, temperature.dtype)
    first, last = _column_range(x, view, TILE)
    for start in range(first, last, TILE.COLUMNS):
        column = tl.arange(0, TILE.COLUMNS).to(tl.int64) + start
        column_inside = column < last
        columns = load_chunk(x.panel, column, column_inside, 0, TILE.D, TILE.CHUNK)
        column_inverse = tl.load(x.inverse + column, mask=column_inside, other=0.0)
        column_weight = tl.load(weight + column, mask=column_inside, other=0.0)
        column_log_sum = tl.load(log_sum + column, mask=column_inside, other=0.0) * LOG2_E
        score = _scores(x, row, inside, rows, column, column_inside, columns, TILE)
        score *= row_factor[:, None] * column_inverse[None, :]
        if TILE.SHARED_SHIFT:  # one exponential serves both anchors of a pair of rows
            row_share = row_weight * tl.exp2(sharpness - row_log_sum)
            column_share = column_weight * tl.exp2(sharpness - column_log_sum)
            g = tl.exp2(score - sharpness) * (row_share[:, None] + column_share[None, :])
        else:
            g = row_weight[:, None] * tl.exp2(score - row_log_sum[:, None])
            g += column_weight[None, :] * tl.exp2(score - column_log_sum[None, :])
        g = tl.where(_is_negative(x, pair, column, last), g * column_inverse[None, :], 0.0)
        if TILE.D > TILE.CHUNK:
            columns = load_chunk(x.panel, column, column_inside, chunk, TILE.D, TILE.CHUNK)
        if TILE.SHARED_SHIFT:
            grad = product(rounded(g, columns.dtype), columns, grad)
        else:  # few terms may dominate the sum, whose rounding to half would then not average out
            grad = product_in_two(g, columns, grad)
    share = row_weight + tl.load(weight + positive, mask=inside, other=0.0)
    share *= tl.load(x.inverse + positive, mask=inside, other=0.0)
    grad -= share[:, None] * load_chunk(x.panel, positive, inside, chunk, TILE.D, TILE.CHUNK).to(temperature.dtype)
    factor = 1 / temperature
    if unscale is not None:
        factor *= tl.load(unscale)
    store_chunk(unit_grad, row, inside, chunk, grad * factor, TILE.D, TILE.CHUNK)
