"""The kernels of ``interest_softmax_loss``. The algebra and the schedule are in docs/triton.md.

The m interests of a block of users lie in one matrix of USERS * INTERESTS rows, so that one product with a tile of
candidates gives all scores, [USERS, INTERESTS, CANDIDATES], of which the best survives.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cmi_fast.triton.kernels.rows import (
    LOG2_E,
    load_chunk,
    log_of_sum,
    product,
    product_in_two,
    rounded,
    softplus,
    store_chunk,
)


class Inputs(NamedTuple):
    """The inputs of one call as the kernels take them."""

    interests: Tensor  # [B, M, D]
    candidates: Tensor  # [C, D]
    targets: Tensor  # [B]
    general: Tensor | None  # [B, D]
    candidate_bias: Tensor | None  # [C]
    exclude: Tensor | None  # [B, C]
    candidate_ids: Tensor | None  # [C]
    temperature: Tensor  # []
    users: int
    candidate_count: int


class Tile(NamedTuple):
    """What kernels are compiled for: m, d, and users, interests, candidates, dimensions of a tile."""

    FP32_PRECISION: str
    M: int
    D: int
    USERS: int
    INTERESTS: int
    CANDIDATES: int
    CHUNK: int


@triton.jit
def _spread(values, TILE: tl.constexpr):
    """[USERS, n] as [USERS * INTERESTS, n]: each user's row for every one of the interests."""
    wide = tl.broadcast_to(values[:, None, :], [TILE.USERS, TILE.INTERESTS, values.shape[1]])
    return tl.reshape(wide, [TILE.USERS * TILE.INTERESTS, values.shape[1]])


@triton.jit
def _rows_of(x, user, TILE: tl.constexpr):
    """Rows of interests [B * M, D] of users [USERS], [USERS * INTERESTS], and which exist."""
    k = tl.arange(0, TILE.INTERESTS)
    row = tl.reshape(user[:, None] * TILE.M + k[None, :], [TILE.USERS * TILE.INTERESTS])
    exists = tl.reshape((user < x.users)[:, None] & (k < TILE.M)[None, :], [TILE.USERS * TILE.INTERESTS])
    return row, exists


@triton.jit
def _best(products, TILE: tl.constexpr):
    """Of products [USERS, INTERESTS, n] the best over the interests, [USERS, n], and the first that reaches it.

    Not a number where one of them is: a maximum passes over NaN.
    """
    k = tl.arange(0, TILE.INTERESTS)[None, :, None]
    exists = k < TILE.M
    best = tl.max(tl.where(exists, products, -float("inf")), 1)
    first = tl.min(tl.where(exists & (products == best[:, None, :]), k, TILE.INTERESTS), 1)
    broken = tl.max(tl.where(exists & (products != products), 1, 0), 1) > 0
    return tl.where(broken, float("nan"), best), tl.where(broken, 0, first)


@triton.jit
def _logits(x, user, candidate, temperature, TILE: tl.constexpr):
    """Logits [USERS, CANDIDATES]; max_k u_k . v, which the temperature divides in them; and the k that reaches it."""
    row, row_exists = _rows_of(x, user, TILE)
    products = tl.full([TILE.USERS * TILE.INTERESTS, TILE.CANDIDATES], 0.0, temperature.dtype)
    logits = tl.full([TILE.USERS, TILE.CANDIDATES], 0.0, temperature.dtype)
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        vectors = tl.trans(
            load_chunk(x.candidates, candidate, candidate < x.candidate_count, start, TILE.D, TILE.CHUNK)
        )
        rows = load_chunk(x.interests, row, row_exists, start, TILE.D, TILE.CHUNK)
        products = product(rows, vectors, products, TILE.FP32_PRECISION)
        if x.general is not None:
            general = load_chunk(x.general, user, user < x.users, start, TILE.D, TILE.CHUNK)
            logits = product(general, vectors, logits, TILE.FP32_PRECISION)
    best, first = _best(tl.reshape(products, [TILE.USERS, TILE.INTERESTS, TILE.CANDIDATES]), TILE)
    logits += best / temperature
    if x.candidate_bias is not None:
        bias = tl.load(x.candidate_bias + candidate, mask=candidate < x.candidate_count, other=0.0)
        logits += bias.to(temperature.dtype)[None, :]
    return logits, best, first


@triton.jit
def _target_logits(x, user, target, temperature, TILE: tl.constexpr):
    """Each user's logit of the target [USERS], max_k u_k . v in it, and the k that reaches it."""
    row, row_exists = _rows_of(x, user, TILE)
    known = (user < x.users) & (target >= 0) & (target < x.candidate_count)
    products = tl.full([TILE.USERS * TILE.INTERESTS], 0.0, temperature.dtype)
    # A target out of range, which nobody has checked, has no logit.
    logits = tl.where((user < x.users) & ~known, float("nan"), tl.full([TILE.USERS], 0.0, temperature.dtype))
    for start in tl.range(0, TILE.D, TILE.CHUNK, num_stages=1):
        vectors = load_chunk(x.candidates, target, known, start, TILE.D, TILE.CHUNK).to(temperature.dtype)
        rows = load_chunk(x.interests, row, row_exists, start, TILE.D, TILE.CHUNK).to(temperature.dtype)
        products += tl.sum(rows * _spread(vectors, TILE), 1)
        if x.general is not None:
            general = load_chunk(x.general, user, user < x.users, start, TILE.D, TILE.CHUNK).to(temperature.dtype)
            logits += tl.sum(general * vectors, 1)
    best, first = _best(tl.reshape(products, [TILE.USERS, TILE.INTERESTS, 1]), TILE)
    best = tl.reshape(best, [TILE.USERS])
    logits += best / temperature
    if x.candidate_bias is not None:
        logits += tl.load(x.candidate_bias + target, mask=known, other=0.0).to(temperature.dtype)
    return logits, best, tl.reshape(first, [TILE.USERS])


@triton.jit
def _counts(x, user, candidate, target):
    """[USERS, CANDIDATES]: the candidates that count beside the target."""
    inside = (user < x.users)[:, None] & (candidate < x.candidate_count)[None, :]
    counts = inside & (candidate[None, :] != target[:, None])
    if x.exclude is not None:
        removed = tl.load(x.exclude + user[:, None] * x.candidate_count + candidate[None, :], mask=inside, other=0)
        counts = counts & (removed == 0)
    if x.candidate_ids is not None:
        known = (user < x.users) & (target >= 0) & (target < x.candidate_count)
        own = tl.load(x.candidate_ids + target, mask=known, other=0)
        others = tl.load(x.candidate_ids + candidate, mask=candidate < x.candidate_count, other=0)
        counts = counts & (others[None, :] != own[:, None])
    return counts


@triton.jit
def forward_kernel(x, log_sum, losses, TILE: tl.constexpr):
    """Log-sum-exp of a block of users' logits by a running maximum, candidates tile by tile; then their losses."""
    temperature = tl.load(x.temperature)
    user = tl.program_id(0).to(tl.int64) * TILE.USERS + tl.arange(0, TILE.USERS)
    inside = user < x.users
    target = tl.load(x.targets + user, mask=inside, other=0)
    shift = tl.full([TILE.USERS], -float("inf"), temperature.dtype)
    total = tl.full([TILE.USERS], 0.0, temperature.dtype)
    for start in range(0, x.candidate_count, TILE.CANDIDATES):
        candidate = tl.arange(0, TILE.CANDIDATES).to(tl.int64) + start
        logits, _, _ = _logits(x, user, candidate, temperature, TILE)
        logits = tl.where(_counts(x, user, candidate, target), logits * LOG2_E, -float("inf"))
        raised = tl.maximum(shift, tl.max(logits, 1))
        finite = tl.where(raised == -float("inf"), 0.0, raised)
        total = total * tl.exp2(shift - finite) + tl.sum(tl.exp2(logits - finite[:, None]), 1)
        shift = raised
    log_sums = log_of_sum(shift, total)
    target_logits, _, _ = _target_logits(x, user, target, temperature, TILE)
    tl.store(log_sum + user, log_sums, mask=inside)
    tl.store(losses + user, softplus(log_sums - target_logits), mask=inside)


@triton.jit
def weight_kernel(x, losses_grad, log_sum, weight, TILE: tl.constexpr):
    """b = w sigmoid(L - c_target): minus the gradient of the target's logit, and the sum of all the others'."""
    user = tl.program_id(0).to(tl.int64) * TILE.USERS + tl.arange(0, TILE.USERS)
    inside = user < x.users
    target = tl.load(x.targets + user, mask=inside, other=0)
    logits, _, _ = _target_logits(x, user, target, tl.load(x.temperature), TILE)
    share = 1 / (1 + tl.exp(logits - tl.load(log_sum + user, mask=inside, other=0.0)))
    tl.store(weight + user, tl.load(losses_grad + user, mask=inside, other=0.0) * share, mask=inside)


@triton.jit
def _logit_gradients(x, logits, counts, log_sum, weights, user):
    """b e^(c - L) for the candidates that count beside the target, [USERS, CANDIDATES]."""
    log_sums = tl.load(log_sum + user, mask=user < x.users, other=0.0)
    return tl.where(counts, weights[:, None] * tl.exp2((logits - log_sums[:, None]) * LOG2_E), 0.0)


@triton.jit
def _of_best(logit_grads, first, TILE: tl.constexpr):
    """Each pair's gradient at the interest that scored it, zero at the others: [USERS * INTERESTS, CANDIDATES]."""
    chosen = tl.arange(0, TILE.INTERESTS)[None, :, None] == first[:, None, :]
    grads = tl.where(chosen, logit_grads[:, None, :], 0.0)
    return tl.reshape(grads, [TILE.USERS * TILE.INTERESTS, TILE.CANDIDATES])


@triton.jit
def user_gradient_kernel(
    x,
    log_sum,  # [B]
    weight,  # [B]
    unscale,  # [] or None
    interests_grad,  # [B, M, D] or None
    general_grad,  # [B, D] or None
    temperature_grad,  # [B] or None: each user's part
    TILE: tl.constexpr,
):
    """What a block of users gets from all candidates, for one chunk of dimensions; the target's share in float32."""
    temperature = tl.load(x.temperature)
    chunk = tl.program_id(1) * TILE.CHUNK
    user = tl.program_id(0).to(tl.int64) * TILE.USERS + tl.arange(0, TILE.USERS)
    inside = user < x.users
    target = tl.load(x.targets + user, mask=inside, other=0)
    weights = tl.load(weight + user, mask=inside, other=0.0)
    factor = tl.load(unscale) if unscale is not None else 1.0
    grad = tl.full([TILE.USERS * TILE.INTERESTS, TILE.CHUNK], 0.0, temperature.dtype)
    along = tl.full([TILE.USERS], 0.0, temperature.dtype)
    for start in range(0, x.candidate_count, TILE.CANDIDATES):
        candidate = tl.arange(0, TILE.CANDIDATES).to(tl.int64) + start
        logits, best, first = _logits(x, user, candidate, temperature, TILE)
        counts = _counts(x, user, candidate, target)
        logit_grads = _logit_gradients(x, logits, counts, log_sum, weights, user)
        along += tl.sum(tl.where(counts, logit_grads * best, 0.0), 1)
        vectors = load_chunk(x.candidates, candidate, candidate < x.candidate_count, chunk, TILE.D, TILE.CHUNK)
        grad = product_in_two(_of_best(logit_grads, first, TILE), vectors, grad, TILE.FP32_PRECISION)
    _, best, first = _target_logits(x, user, target, temperature, TILE)
    known = inside & (target >= 0) & (target < x.candidate_count)
    vectors = load_chunk(x.candidates, target, known, chunk, TILE.D, TILE.CHUNK).to(temperature.dtype)
    chosen = tl.arange(0, TILE.INTERESTS)[None, :] == first[:, None]
    chosen = tl.reshape(chosen, [TILE.USERS * TILE.INTERESTS, 1])
    grad = (grad - tl.where(chosen, _spread(vectors * weights[:, None], TILE), 0.0)) * factor
    if interests_grad is not None:
        row, row_exists = _rows_of(x, user, TILE)
        store_chunk(interests_grad, row, row_exists, chunk, grad / temperature, TILE.D, TILE.CHUNK)
    if general_grad is not None:
        of_user = tl.sum(tl.reshape(grad, [TILE.USERS, TILE.INTERESTS, TILE.CHUNK]), 1)
        store_chunk(general_grad, user, inside, chunk, of_user, TILE.D, TILE.CHUNK)
    if temperature_grad is not None:
        along = (weights * best - along) * factor / (temperature * temperature)
        tl.store(temperature_grad + user, along, mask=inside & (chunk == 0))


@triton.jit
def candidate_gradient_kernel(
    x,
    log_sum,  # [B]
    weight,  # [B]
    unscale,  # [] or None
    candidates_grad,  # [C, D] or None
    bias_grad,  # [C] or None
    TILE: tl.constexpr,
):
    """What a block of candidates gets from all users, for one chunk of dimensions."""
    temperature = tl.load(x.temperature)
    chunk = tl.program_id(1) * TILE.CHUNK
    candidate = tl.program_id(0).to(tl.int64) * TILE.CANDIDATES + tl.arange(0, TILE.CANDIDATES)
    inside = candidate < x.candidate_count
    factor = tl.load(unscale) if unscale is not None else 1.0
    grad = tl.full([TILE.CANDIDATES, TILE.CHUNK], 0.0, temperature.dtype)
    sums = tl.full([TILE.CANDIDATES], 0.0, temperature.dtype)
    for start in range(0, x.users, TILE.USERS):
        user = tl.arange(0, TILE.USERS).to(tl.int64) + start
        target = tl.load(x.targets + user, mask=user < x.users, other=0)
        weights = tl.load(weight + user, mask=user < x.users, other=0.0)
        logits, _, first = _logits(x, user, candidate, temperature, TILE)
        logit_grads = _logit_gradients(x, logits, _counts(x, user, candidate, target), log_sum, weights, user)
        own = (user < x.users)[:, None] & (candidate[None, :] == target[:, None])
        logit_grads = tl.where(own, -weights[:, None], logit_grads)
        sums += tl.sum(logit_grads, 0)
        if candidates_grad is not None:
            grads = tl.trans(_of_best(logit_grads, first, TILE))
            row, row_exists = _rows_of(x, user, TILE)
            rows = load_chunk(x.interests, row, row_exists, chunk, TILE.D, TILE.CHUNK)
            grad = product_in_two(grads / temperature, rows, grad, TILE.FP32_PRECISION)
            if x.general is not None:
                general = load_chunk(x.general, user, user < x.users, chunk, TILE.D, TILE.CHUNK)
                grad = product_in_two(grads, _spread(general, TILE), grad, TILE.FP32_PRECISION)
    if candidates_grad is not None:
        store_chunk(candidates_grad, candidate, inside, chunk, grad * factor, TILE.D, TILE.CHUNK)
    if bias_grad is not None:
        bias_grads = rounded(sums * factor, bias_grad.dtype.element_ty)
        tl.store(bias_grad + candidate, bias_grads, mask=inside & (chunk == 0))
