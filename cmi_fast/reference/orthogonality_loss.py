"""Eq. 4: how far the categories are from being orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type, unit_rows


def orthogonality_loss(categories: Tensor) -> Tensor:
    """Shapes as in ``cmi_fast.functional.orthogonality_loss``."""
    unit = unit_rows(categories.to(accumulation_type(categories.dtype)))
    others = 1 - torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    return (unit @ unit.T * others).square().sum()
