"""Eq. 1-3: soft assignment to categories by cosine, and one pooled interest per category."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type, unit_rows


def soft_assignment_pool(
    items: Tensor,
    categories: Tensor,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    views: Tensor | None = None,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.soft_assignment_pool``."""
    compute = accumulation_type(items.dtype)
    member = torch.ones(items.shape[:-1], dtype=torch.bool, device=items.device)  # [B, L] or [T]
    if lengths is not None:
        member = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    rows = torch.where(member[..., None], items.to(compute), 0)  # padding may hold anything, NaN too
    unit = unit_rows(rows)
    scores = unit @ unit_rows(categories.to(compute)).T
    assignment = torch.softmax(scores / temperature, dim=-1)  # [B, L, m] or [T, m]

    def pool(member: Tensor) -> Tensor:
        weights = assignment * member[..., None]
        if offsets is None:
            return weights.transpose(1, 2) @ unit
        positions = torch.arange(len(unit), device=unit.device)
        sequence = torch.searchsorted(offsets, positions, right=True) - 1
        pooled = unit.new_zeros(len(offsets) - 1, *categories.shape)
        return pooled.index_add(0, sequence, weights[:, :, None] * unit[:, None, :])

    if views is None:
        return pool(member).to(items.dtype)
    return torch.stack([pool(member & view) for view in views]).to(items.dtype)
