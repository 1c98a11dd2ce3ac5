"""Eq. 6: the normalised temperature-scaled cross-entropy between two views of the same rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmi_fast.reference.reduction import reduce_losses
from cmi_fast.reference.rows import accumulation_type, unit_rows


def nt_xent_loss(
    first: Tensor,
    second: Tensor,
    temperature: float | Tensor = 0.1,
    negatives: str = "all",
    direction: str = "both",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Shapes and options as in ``cmi_fast.functional.nt_xent_loss``."""
    rows = torch.cat([first.flatten(0, -2), second.flatten(0, -2)]).to(accumulation_type(first.dtype))  # [2N, d]
    if normalize:
        rows = unit_rows(rows)
    pairs = len(rows) // 2
    row = torch.arange(len(rows), device=rows.device)
    anchor = row if direction == "both" else row[:pairs]
    scores = rows[: len(anchor)] @ rows.T / temperature  # [2N, 2N] or [N, 2N]
    positive = scores.gather(1, ((anchor + pairs) % len(rows))[:, None]).squeeze(1)
    if pairs == 1:
        return reduce_losses(0 * positive, reduction)  # the log-sum-exp of no negatives has no second derivative
    negative = anchor[:, None] % pairs != row % pairs  # neither the anchor itself nor its positive
    if negatives == "cross_view":
        negative &= (anchor[:, None] < pairs) != (row < pairs)
    log_sum = scores.masked_fill(~negative, -torch.inf).logsumexp(1)
    # log(1 + exp(x)) is x itself only beyond 40: PyTorch's own threshold of 20 costs 2e-9.
    return reduce_losses(F.softplus(log_sum - positive, threshold=40), reduction)
