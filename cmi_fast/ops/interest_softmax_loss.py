"""``interest_softmax_loss``: the next item among candidates, scored by the best interest (Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import autocast_enabled, cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend, goes_straight_to_cpu
from cmi_fast.ops.checks import (
    FLOATING,
    FP32_PRECISIONS,
    INTEGER,
    REDUCTIONS,
    as_int64,
    check_choice,
    check_not_empty,
    check_range,
    check_same,
    check_shape,
    check_temperature,
    check_tensor,
    values_can_be_read,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.registration import register_triton_operator

MAX_INTERESTS = 256  # the CPU kernel keeps a pair's best interest in a byte
MAX_CUDA_INTERESTS = 64  # those of a user lie in one tile
LEAST_TEMPERATURE = 1e-30  # inverse of the largest factor that leaves float32 room for scores of 1e8
CANDIDATE_TILE = 64  # as the CPU kernel lays out what its backward reads


def interest_softmax_loss(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    candidate_bias: Tensor | None = None,
    exclude: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    reduction: str = "mean",
    fp32_precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    r"""Cross-entropy of each user's target among shared candidates, scored by the user's best interest (Eq. 7).

    A candidate v scores, with the interests :math:`u_k` and the general interest :math:`u_g` of the user,

    .. math:: c = \max_k (u_k \cdot v / \text{temperature}) + u_g \cdot v
                = \max_k ((u_k / \text{temperature} + u_g) \cdot v).

    Nothing is normalised inside. Where several interests score the same, the first takes the gradient.

    Args:
        interests: [B, m, d].
        candidates: [C, d].
        targets: [B] int, the row of ``candidates`` that is the user's positive.
        general: [B, d]; None: no general interest.
        temperature: at least 1e-30, so that scores are finite; a 0-d tensor gets its gradient.
        candidate_bias: [C], added to the scores. The logQ correction of sampled candidates is ``-log(q)``, q the
            probability of drawing the candidate.
        exclude: bool [B, C], True where a candidate does not count for a user; never the user's target.
        candidate_ids: [C] int, the item that each candidate is: other copies of a user's target do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        fp32_precision: as in :func:`nt_xent_loss`.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"`` (never run on a GPU yet, and never
            chosen by ``"auto"``; at most 64 interests). The CPU kernel takes at most 256 interests and needs memory of
            B x C, never of B x m x C.

    Returns:
        The loss, a scalar; with ``reduction="none"`` [B]. float32 for half inputs, else the inputs' dtype. It is zero
        where no candidate but the target counts.

    Raises:
        IndexError: a target is no row of ``candidates``; the message names the first.
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, temperature, option or backend does not fit, or ``exclude`` removes a user's target; the
            message names it.
        RuntimeError: a second derivative through the CPU kernel (the reference has one).
    """
    inputs = interests, candidates, targets, general, candidate_bias, exclude, candidate_ids
    usual = type(temperature) is float and LEAST_TEMPERATURE <= temperature <= 1 / LEAST_TEMPERATURE
    if usual and fp32_precision == "ieee" and goes_straight_to_cpu(backend, inputs):
        try:
            return _interest_softmax_loss(*inputs, temperature, None, reduction)
        except RuntimeError:
            pass  # the checks below say in the caller's terms what was wrong, or find what can run
    check_tensor("interests", interests, "[B, m, d]")
    check_tensor("candidates", candidates, "[C, d]")
    check_tensor("targets", targets, "[B]", INTEGER)
    users, m, dim = interests.shape
    count = len(candidates)
    check_not_empty("interests", interests, "[B, m, d]")
    check_shape("candidates", candidates, (count, dim), "[C, d], d as interests")
    check_not_empty("candidates", candidates, "[C, d]")
    check_shape("targets", targets, (users,), "[B], as interests")
    if general is not None:
        check_tensor("general", general, "[B, d]")
        check_shape("general", general, (users, dim), "[B, d], as interests")
    if candidate_bias is not None:
        check_tensor("candidate_bias", candidate_bias, "[C]")
        check_shape("candidate_bias", candidate_bias, (count,), "[C], as candidates")
    if exclude is not None:
        check_tensor("exclude", exclude, "[B, C]", (torch.bool,))
        check_shape("exclude", exclude, (users, count), "[B, C], as interests and candidates")
    if candidate_ids is not None:
        check_tensor("candidate_ids", candidate_ids, "[C]", INTEGER)
        check_shape("candidate_ids", candidate_ids, (count,), "[C], as candidates")
    if autocast_enabled(interests.device):
        interests, candidates = cast_for_autocast(interests, candidates)
        general, candidate_bias = (x if x is None else cast_for_autocast(x)[0] for x in (general, candidate_bias))
    check_same(
        "interests",
        interests,
        targets=targets,
        candidates=candidates,
        general=general,
        candidate_bias=candidate_bias,
        exclude=exclude,
        candidate_ids=candidate_ids,
    )
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("fp32_precision", fp32_precision, FP32_PRECISIONS)
    number, tensor = check_temperature(temperature, interests, least=LEAST_TEMPERATURE)
    chosen = choose_backend(
        backend,
        "interest_softmax_loss",
        interests,
        cpu=FLOATING,
        unsupported=None if m <= MAX_INTERESTS else f"its kernel takes up to {MAX_INTERESTS} interests, found {m}",
        cuda_unsupported=None
        if m <= MAX_CUDA_INTERESTS
        else f"it takes at most {MAX_CUDA_INTERESTS} interests, found {m}",
    )
    if values_can_be_read(targets):
        check_range("targets", targets, 0, count, IndexError)
        if exclude is not None:
            _check_targets_stay(exclude, targets)
    if chosen == "reference":
        with without_autocast(interests.device):
            temperature = number if tensor is None else tensor
            return reference.interest_softmax_loss(
                interests, candidates, targets, general, temperature, candidate_bias, exclude, candidate_ids, reduction
            )
    targets = as_int64(targets)
    candidate_ids = None if candidate_ids is None else as_int64(candidate_ids)
    inputs = interests, candidates, targets, general, candidate_bias, exclude, candidate_ids
    if chosen == "triton":
        return _triton_interest_softmax_loss(*inputs, number, tensor, fp32_precision, reduction=reduction)
    return _interest_softmax_loss(*inputs, number, tensor, reduction)


def _check_targets_stay(exclude: Tensor, targets: Tensor) -> None:
    removed = exclude.gather(1, as_int64(targets)[:, None]).nonzero()
    if len(removed):
        row = int(removed[0, 0])
        raise ValueError(f"exclude[{row}, {targets[row]}]: expected False for the target of row {row}, found True")


def _fake(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None,
    candidate_bias: Tensor | None,
    exclude: Tensor | None,
    candidate_ids: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    users = interests.shape[0]
    loss = () if reduction != "none" else (users,)
    if interests.device.type == "cuda":
        # The logarithm of the sum over all but the target, and the target's score.
        losses = interests.new_empty(loss, dtype=torch.float32)
        return losses, interests.new_empty((2, users), dtype=torch.float32)
    tiles = (candidates.shape[0] + CANDIDATE_TILE - 1) // CANDIDATE_TILE
    dtype = accumulation_type(interests.dtype)
    # A pair's exponential, and its best interest in a byte; a scale for each user and tile; a miss for each user.
    saved = tiles * users * (CANDIDATE_TILE + CANDIDATE_TILE // dtype.itemsize) + users * (tiles + 1)
    return interests.new_empty(loss, dtype=dtype), interests.new_empty(saved, dtype=dtype)


if _native.available:
    _interest_softmax_loss = register_operator(
        "cmi_fast", "interest_softmax_loss", fake=_fake, differentiable=(0, 1, 3, 4, 8)
    )


def _triton_fake(interests: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    losses = interests.new_empty(interests.shape[0], dtype=accumulation_type(interests.dtype))
    return losses, torch.empty_like(losses)


_triton_interest_softmax_loss = register_triton_operator(
    "interest_softmax_loss",
    "Tensor interests, Tensor candidates, Tensor targets, Tensor? general, Tensor? candidate_bias, Tensor? exclude, "
    "Tensor? candidate_ids, float temperature, Tensor? temperature_tensor, str fp32_precision",
    outputs=2,
    differentiable=(0, 1, 3, 4, 8),
    fake=_triton_fake,
)
