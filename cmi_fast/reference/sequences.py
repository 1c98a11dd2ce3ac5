"""Sequences of rows, padded or jagged, in one form."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(items: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Jagged ``items`` [T, ...] as [B, L, ...], L the longest length, and the lengths [B]."""
    lengths = offsets.diff()
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    sequence, position = places(offsets, len(items))
    padded = items.new_zeros(len(lengths), longest, *items.shape[1:])
    return padded.index_put((sequence, position), items), lengths


def places(offsets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The sequence of each of ``total`` jagged rows, and its position there; both [T]."""
    row = torch.arange(total, device=offsets.device)
    sequence = torch.searchsorted(offsets, row, right=True) - 1
    return sequence, row - offsets[sequence]


def padded_rows(items: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows [B, L, d], zero beyond the lengths, and which of them are inside, bool [B, L].

    Padding may hold anything, NaN too: it is replaced, not multiplied by zero.
    """
    if offsets is not None:
        items, lengths = pad(items, offsets)
    if lengths is None:
        return items, torch.ones(items.shape[:2], dtype=torch.bool, device=items.device)
    inside = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    return torch.where(inside[..., None], items, 0), inside
