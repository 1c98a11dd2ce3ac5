"""ComiRec-SA: one attention over the items for each interest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.reference.sequences import padded_rows


def self_attentive_pool(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.self_attentive_pool``."""
    compute = accumulation_type(items.dtype)
    rows, inside = padded_rows(items, lengths, offsets)
    rows, weight, queries = rows.to(compute), weight.to(compute), queries.to(compute)
    keys = rows if positions is None else rows + positions[: rows.shape[1]].to(compute)
    hidden = torch.tanh(F.linear(keys, weight, None if bias is None else bias.to(compute)))  # [B, L, h]
    scores = (hidden @ queries.T).masked_fill(~inside[..., None], torch.finfo(compute).min)
    attention = torch.softmax(scores, dim=1)  # over the items: [B, L, K]
    return (attention.transpose(1, 2) @ rows).to(items.dtype)
