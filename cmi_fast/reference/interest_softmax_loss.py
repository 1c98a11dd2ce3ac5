"""Eq. 7: cross-entropy over candidates that are scored by the best of a user's interests."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast.reference.reduction import reduce_losses
from cmi_fast.reference.rows import accumulation_type


def interest_softmax_loss(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    candidate_bias: Tensor | None = None,
    exclude: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Shapes and options as in ``cmi_fast.functional.interest_softmax_loss``."""
    compute = accumulation_type(interests.dtype)
    queries = interests.to(compute) / temperature  # [B, m, d]
    if general is not None:
        queries = queries + general.to(compute)[:, None]
    logits = (queries @ candidates.to(compute).T).max(dim=1).values  # [B, C]; the first of equals gets the gradient
    if candidate_bias is not None:
        logits = logits + candidate_bias.to(compute)
    targets = targets.to(torch.int64)
    removed = torch.zeros_like(logits, dtype=torch.bool) if exclude is None else exclude
    if candidate_ids is not None:
        removed = removed | (candidate_ids == candidate_ids[targets][:, None])
    own = torch.arange(len(candidates), device=targets.device) == targets[:, None]
    log_share = logits.masked_fill(removed & ~own, -torch.inf).log_softmax(1)
    return reduce_losses(-log_share.gather(1, targets[:, None]).squeeze(1), reduction)
