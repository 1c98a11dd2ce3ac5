"""The kernels of ``nt_xent_loss``. The algebra is in docs/kernels.md, the schedule in docs/triton.md.

Matrix products see the inputs' own digits, everything else is float32. Exponentials are taken to base 2.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.kernels.rows import (
    LN_2,
    LOG2_E,
    load_chunk,
    log_of_sum,
    product,
    product_in_two,
    rounded,
    row_scales,
    softplus,
    store_chunk,
)


class Inputs(NamedTuple):
    """The inputs of one call as the kernels take them."""

    panel: Tensor  # [2N, D]
    inverse: Tensor  # [2N]
    temperature: Tensor  # []
    pairs: int


class Tile(NamedTuple):
    """What kernels are compiled for: the mode, d, and anchors, columns, dimensions of a tile."""

    FP32_PRECISION: str
    CROSS_VIEW: bool
    SHARED_SHIFT: bool
    D: int
    ANCHORS: int
    COLUMNS: int
    CHUNK: int


@triton.jit
def panel_kernel(
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
    scores = product(anchors, tl.trans(columns), scores, TILE.FP32_PRECISION)
    for start in tl.range(TILE.CHUNK, TILE.D, TILE.CHUNK, num_stages=1):
        more_anchors = load_chunk(x.panel, anchor, anchor_inside, start, TILE.D, TILE.CHUNK)
        more_columns = load_chunk(x.panel, column, column_inside, start, TILE.D, TILE.CHUNK)
        scores = product(more_anchors, tl.trans(more_columns), scores, TILE.FP32_PRECISION)
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
def forward_kernel(
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
def anchor_weight_kernel(
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
def gradient_kernel(
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
            grad = product(rounded(g, columns.dtype), columns, grad, TILE.FP32_PRECISION)
        else:  # few terms may dominate the sum, whose rounding to half would then not average out
            grad = product_in_two(g, columns, grad, TILE.FP32_PRECISION)
    share = row_weight + tl.load(weight + positive, mask=inside, other=0.0)
    share *= tl.load(x.inverse + positive, mask=inside, other=0.0)
    grad -= share[:, None] * load_chunk(x.panel, positive, inside, chunk, TILE.D, TILE.CHUNK).to(temperature.dtype)
    factor = 1 / temperature
    if unscale is not None:
        factor *= tl.load(unscale)
    store_chunk(unit_grad, row, inside, chunk, grad * factor, TILE.D, TILE.CHUNK)
