"""Losses reduced as the caller wishes."""

from __future__ import annotations

from torch import Tensor


def reduce_losses(losses: Tensor, reduction: str) -> Tensor:
    """``losses`` [n] themselves (``"none"``), their ``"sum"`` or their ``"mean"``."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()
