"""What the kernels share: rows read chunk by chunk, scaled to unit length, and the way back through that scaling.

A row is first multiplied by a power of two that brings its largest magnitude near one: that is exact in every dtype, so
norms of 1e-30 and 1e30 neither underflow nor overflow, and bfloat16 rows stay the rows they were.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Triton's interpreter multiplies the bits of bfloat16 as integers, and truncates where the processor rounds.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(left, right, sums, FP32_PRECISION: tl.constexpr = "ieee"):
    """``sums + left @ right``, summed in the type of ``sums``; products are exact, or of float32 rounded to "tf32"."""
    if INTERPRETED:
        left, right = left.to(sums.dtype), right.to(sums.dtype)
    return tl.dot(left, right, sums, input_precision=FP32_PRECISION, out_dtype=sums.dtype)


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """``values`` in ``dtype``, rounded to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16 and values.dtype != tl.bfloat16:
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        values = tl.where(values == values, nearest, values)
    return values.to(dtype)


@triton.jit
def load_chunk(rows_pointer, row, inside, start, D: tl.constexpr, CHUNK: tl.constexpr):
    """Dimensions ``start`` to ``start + CHUNK`` of the rows ``row`` [R], zero where not ``inside``: [R, CHUNK]."""
    dimension = start + tl.arange(0, CHUNK)
    mask = inside[:, None] & (dimension < D)[None, :]
    return tl.load(rows_pointer + row[:, None] * D + dimension[None, :], mask=mask, other=0.0)


@triton.jit
def store_chunk(rows_pointer, row, inside, start, values, D: tl.constexpr, CHUNK: tl.constexpr):
    dimension = start + tl.arange(0, CHUNK)
    mask = inside[:, None] & (dimension < D)[None, :]
    values = rounded(values, rows_pointer.dtype.element_ty)
    tl.store(rows_pointer + row[:, None] * D + dimension[None, :], values, mask=mask)


@triton.jit
def product_in_two(left, right, sums, FP32_PRECISION: tl.constexpr = "ieee"):
    """``sums + left @ right`` for wide ``left``, which goes in as a high and a low half where ``right`` is half."""
    high = rounded(left, right.dtype)
    sums = product(high, right, sums, FP32_PRECISION)
    if right.dtype != left.dtype:
        sums = product(rounded(left - high.to(left.dtype), right.dtype), right, sums, FP32_PRECISION)
    return sums


@triton.jit
def inverse_power_of_two(magnitude):
    """A power of two that brings ``magnitude`` to [1, 2), or as near as the range of exponents goes."""
    if magnitude.dtype == tl.float64:
        exponent = magnitude.to(tl.int64, bitcast=True) >> 52
        scale = (tl.minimum(tl.maximum(2046 - exponent, 1), 2046) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = magnitude.to(tl.int32, bitcast=True) >> 23
        scale = (tl.minimum(tl.maximum(254 - exponent, 1), 254) << 23).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def row_scales(rows_pointer, row, inside, TYPE: tl.constexpr, ACC: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr):
    """(scale, inverse), both [R]: ``x * scale`` is near one, ``x * scale * inverse`` of unit length, or zero for zero.

    x is the row rounded to TYPE. The two are kept apart as their product may overflow where the row is tiny.
    """
    largest = tl.zeros([row.shape[0]], ACC)
    for start in tl.range(0, D, CHUNK, num_stages=1):
        chunk = rounded(load_chunk(rows_pointer, row, inside, start, D, CHUNK), TYPE).to(ACC)
        largest = tl.maximum(largest, tl.max(tl.abs(chunk), 1))
    scale = inverse_power_of_two(largest)
    square = tl.zeros([row.shape[0]], ACC)
    for start in tl.range(0, D, CHUNK, num_stages=1):
        chunk = rounded(load_chunk(rows_pointer, row, inside, start, D, CHUNK), TYPE).to(ACC) * scale[:, None]
        square += tl.sum(chunk * chunk, 1)
    inverse = tl.where(square == 0, 0.0, 1 / tl.sqrt(tl.where(square == 0, 1.0, square)))
    return scale, inverse


@triton.jit
def log_of_sum(shift, total):
    """log(2^shift * total), minus infinity where ``total`` is zero."""
    return tl.where(total == 0, -float("inf"), shift + tl.log2(tl.where(total == 0, 1.0, total))) * LN_2


@triton.jit
def softplus(x):
    """log(1 + e^x) without loss of small values; Triton's interpreter has no log1p."""
    small = tl.exp(-tl.abs(x))
    sum_ = 1 + small
    log1p = tl.where(sum_ == 1, small, tl.log(sum_) * (small / tl.where(sum_ == 1, 1.0, sum_ - 1)))
    return tl.where(x > 0, x, 0.0) + log1p


@triton.jit
def tanh(x):
    """As the CPU kernels have it; Triton's interpreter has none."""
    small = tl.exp(-2 * tl.abs(x))
    magnitude = (1 - small) / (1 + small)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def unit_rows_backward_kernel(
    rows,  # [n, D]
    unit_grad,  # [n, D]
    rows_grad,  # [n, D] or None
    radial,  # [n] or None: each row's z . dz, of which the temperature's gradient is made
    n,
    NORMALIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    ACC: tl.constexpr = unit_grad.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    if NORMALIZE:
        scale, inverse = row_scales(rows, row, inside, rows.dtype.element_ty, ACC, D, CHUNK)
    else:
        scale = tl.full([BLOCK], 1.0, ACC)
        inverse = scale
    along = tl.zeros([BLOCK], ACC)
    for start in tl.range(0, D, CHUNK, num_stages=1):
        unit = load_chunk(rows, row, inside, start, D, CHUNK).to(ACC) * scale[:, None] * inverse[:, None]
        along += tl.sum(unit * load_chunk(unit_grad, row, inside, start, D, CHUNK), 1)
    if radial is not None:
        tl.store(radial + row, along, mask=inside)
    if rows_grad is not None:
        for start in tl.range(0, D, CHUNK, num_stages=1):
            grad = load_chunk(unit_grad, row, inside, start, D, CHUNK)
            if NORMALIZE:
                unit = load_chunk(rows, row, inside, start, D, CHUNK).to(ACC) * scale[:, None] * inverse[:, None]
                grad = (grad - unit * along[:, None]) * inverse[:, None] * scale[:, None]
            store_chunk(rows_grad, row, inside, start, grad, D, CHUNK)
