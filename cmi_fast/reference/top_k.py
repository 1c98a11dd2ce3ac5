"""Exact top-K retrieval for users with several interests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cmi_fast.reference.largest import largest
from cmi_fast.reference.rows import accumulation_type

# Scores held at a time, in two buffers: 16 MB in float32, which stays in a server's last-level cache.
USER_BLOCK = 256
SCORE_BLOCK = USER_BLOCK * 8192
ITEM_BLOCK = 65536  # bounds the float32 copy of half-precision items where there are few users


def top_k(
    interests: Tensor, items: Tensor, k: int, exclude_offsets: Tensor | None = None, exclude_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``cmi_fast.retrieval.top_k``. Products of blocks of users with blocks of items, in float32 or, for
    float64, in float64; memory beside the result does not grow with U, m or V."""
    dtype = accumulation_type(interests.dtype)
    scores = torch.full((len(interests), k), -torch.inf, dtype=dtype, device=interests.device)
    rows = torch.full((len(interests), k), -1, device=interests.device)
    for first in range(0, len(interests), USER_BLOCK):
        block = slice(first, min(first + USER_BLOCK, len(interests)))
        excluded = None
        if exclude_offsets is not None and exclude_ids is not None:
            excluded = _pairs(block, exclude_offsets, exclude_ids)
        found, found_rows = _search(interests[block].to(dtype), items, k, excluded)
        scores[block, : found.shape[1]] = found
        rows[block, : found.shape[1]] = found_rows.masked_fill_(found == -torch.inf, -1)
    return scores, rows


def _search(interests: Tensor, items: Tensor, k: int, excluded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Scores and rows, both [U, min(k, V)], of one block of users [U, m, d], whose excluded pairs are
    (users [n], ids [n])."""
    scores = interests.new_empty(len(interests), 0)
    rows = torch.empty(len(interests), 0, dtype=torch.int64, device=interests.device)
    for first, best in _score_blocks(interests, items):
        if excluded is not None:
            users, ids = excluded
            inside = (ids >= first) & (ids < first + best.shape[1])
            best[users[inside], ids[inside] - first] = -torch.inf
        block_scores, columns = largest(best, k)
        # Earlier blocks hold smaller rows and come first, so that ties by column are ties by row.
        scores, order = largest(torch.cat((scores, block_scores), dim=1), k)
        rows = torch.cat((rows, columns + first), dim=1).gather(1, order)
    return scores, rows


def _score_blocks(interests: Tensor, items: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, scores [U, n]) of one block of items after the other; a block's memory is reused."""
    by_interest = interests.transpose(0, 1).contiguous()  # [m, U, d]
    width = min(SCORE_BLOCK // len(interests), ITEM_BLOCK, len(items))
    buffers = interests.new_empty(2, len(interests) * width)
    for first in range(0, len(items), width or 1):
        block = items[first : first + width].to(interests.dtype).T
        shape = (len(interests), block.shape[1])
        best, other = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
        torch.mm(by_interest[0], block, out=best)
        for interest in by_interest[1:]:
            torch.mm(interest, block, out=other)
            torch.maximum(best, other, out=best)
        yield first, best


def _pairs(users: slice, offsets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The excluded pairs of a block of users: user within the block [n], item row [n]."""
    bounds = offsets[users.start : users.stop + 1].long()
    user = torch.arange(len(bounds) - 1, device=ids.device).repeat_interleave(bounds.diff())
    return user, ids[int(bounds[0]) : int(bounds[-1])].long()
