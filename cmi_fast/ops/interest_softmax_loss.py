"""``interest_softmax_loss``: the next item among candidates, scored by the best interest (Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    INTEGER,
    REDUCTIONS,
    check_choice,
    check_device,
    check_not_empty,
    check_range,
    check_same,
    check_shape,
    check_temperature,
    check_tensor,
    values_can_be_read,
)


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
        temperature: positive; a 0-d tensor gets its gradient.
        candidate_bias: [C], added to the scores. The logQ correction of sampled candidates is ``-log(q)``, q the
            probability of drawing the candidate.
        exclude: bool [B, C], True where a candidate does not count for a user; never the user's target.
        candidate_ids: [C] int, the item that each candidate is: other copies of a user's target do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        backend: ``"auto"`` or ``"reference"``; no kernel exists yet.

    Returns:
        The loss, a scalar; with ``reduction="none"`` [B]. float32 for half inputs, else the inputs' dtype. It is zero
        where no candidate but the target counts.

    Raises:
        IndexError: a target is no row of ``candidates``; the message names the first.
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, temperature, option or backend does not fit, or ``exclude`` removes a user's target; the
            message names it.
    """
    check_tensor("interests", interests, "[B, m, d]")
    check_tensor("candidates", candidates, "[C, d]")
    check_tensor("targets", targets, "[B]", INTEGER)
    users, _, dim = interests.shape
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
    check_device("interests", interests, targets=targets, exclude=exclude, candidate_ids=candidate_ids)
    check_device("interests", interests, candidates=candidates, general=general, candidate_bias=candidate_bias)
    interests, candidates = cast_for_autocast(interests, candidates)
    general, candidate_bias = (x if x is None else cast_for_autocast(x)[0] for x in (general, candidate_bias))
    check_same("interests", interests, candidates=candidates, general=general, candidate_bias=candidate_bias)
    check_choice("reduction", reduction, REDUCTIONS)
    number, tensor = check_temperature(temperature, interests)
    if values_can_be_read(targets):
        check_range("targets", targets, 0, count, IndexError)
        if exclude is not None:
            _check_targets_stay(exclude, targets)
    choose_backend(backend, "interest_softmax_loss", interests)
    with without_autocast(interests.device):
        temperature = number if tensor is None else tensor
        return reference.interest_softmax_loss(
            interests, candidates, targets, general, temperature, candidate_bias, exclude, candidate_ids, reduction
        )


def _check_targets_stay(exclude: Tensor, targets: Tensor) -> None:
    removed = exclude.gather(1, targets.to(torch.int64)[:, None]).nonzero()
    if len(removed):
        row = int(removed[0, 0])
        raise ValueError(f"exclude[{row}, {targets[row]}]: expected False for the target of row {row}, found True")
