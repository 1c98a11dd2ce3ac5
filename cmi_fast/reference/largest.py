"""The k largest of each row, with an order of ties that ``torch.topk`` does not promise."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest scores of each row and their columns, ties by column (the smaller one first).

    scores [U, n], no NaN -> values and int64 columns, both [U, min(k, n)], by falling value.
    """
    if k >= scores.shape[1]:
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        return values, columns
    # topk returns equal values in any order, and any of those that tie for the last place: one more
    # than k tells the rows where that matters, and sorting the columns first settles the rest.
    values, columns = scores.topk(k + 1, dim=1)
    chosen = columns[:, :k]
    tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
    if len(tied):
        chosen[tied] = _smallest_columns(scores[tied], values[tied, k - 1, None], k)
    chosen = chosen.sort(dim=1).values
    values, order = scores.gather(1, chosen).sort(dim=1, descending=True, stable=True)
    return values, chosen.gather(1, order)


def _smallest_columns(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Columns [U, k] of the scores [U, n] above ``kth`` [U, 1], and of the first that equal it."""
    above = scores > kth
    tied = scores == kth
    room = k - above.sum(dim=1, keepdim=True)
    kept = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))
    return kept.nonzero()[:, 1].view(-1, k)
