"""Rows scaled to unit length."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """``rows`` [..., d] divided by their Euclidean norm.

    A zero row stays zero and gets a zero gradient. Rows are first divided by their largest magnitude, a constant to
    the gradient, so that norms of 1e-30 and 1e30 neither underflow nor overflow.
    """
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1) * (largest != 0)


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """The type sums run in: float32 for half types, else the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
