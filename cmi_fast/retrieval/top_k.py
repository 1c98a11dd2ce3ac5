"""Exact top-K retrieval for users with several interests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cmi_fast.retrieval.largest import largest

# Scores held at a time, in two buffers: 16 MB in float32, which stays in a server's last-level cache.
USER_BLOCK = 256
SCORE_BLOCK = USER_BLOCK * 8192
ITEM_BLOCK = 65536  # bounds the float32 copy of half-precision items where there are few users

INTEGERS = (torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def top_k(
    interests: Tensor,
    items: Tensor,
    k: int,
    *,
    exclude_offsets: Tensor | None = None,
    exclude_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` items of largest score for each user, exactly; an item's score is the maximum over the
    user's interests of their inner product, as in Eq. 7 of CMI and in ComiRec.

    Args:
        interests: [U, m, d], m >= 1.
        items: [V, d], of the interests' dtype and device. Half precision is computed in float32.
        k: length of the lists, at least 1.
        exclude_offsets, exclude_ids: int32 or int64; the items ``exclude_ids[exclude_offsets[u] :
            exclude_offsets[u + 1]]`` (rows of ``items``, repeats allowed) are left out for user u.

    Returns:
        scores [U, k] (float32, or float64 for float64) by falling score, and rows of ``items``
        [U, k] int64; equal scores by row, the smaller first. Where fewer than ``k`` items remain, the
        lists end in -inf and -1. No gradient flows. Memory beside the result does not grow with
        U, m or V.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range, or a value that is not finite.
    """
    _check_vectors(interests, items)
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    exclude = _check_exclude(exclude_offsets, exclude_ids, len(interests), len(items), interests.device)
    dtype = torch.float64 if interests.dtype == torch.float64 else torch.float32
    scores = torch.full((len(interests), k), -torch.inf, dtype=dtype, device=interests.device)
    rows = torch.full((len(interests), k), -1, device=interests.device)
    for first in range(0, len(interests), USER_BLOCK):
        block = slice(first, min(first + USER_BLOCK, len(interests)))
        excluded = _pairs(block, *exclude) if exclude is not None else None
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


def _check_vectors(interests: Tensor, items: Tensor) -> None:
    for name, tensor, shape in (("interests", interests, "[U, m, d]"), ("items", items, "[V, d]")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {type(tensor).__name__}")
        if tensor.dim() != shape.count(",") + 1:
            raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} {list(tensor.shape)} must be finite, found NaN or infinity")
    if interests.shape[1] == 0:
        raise ValueError(f"interests must have at least one interest a user, got {list(interests.shape)}")
    if items.shape[1] != interests.shape[2]:
        raise ValueError(
            f"items must have shape [V, {interests.shape[2]}] to match interests {list(interests.shape)}, "
            f"got {list(items.shape)}"
        )
    if items.dtype != interests.dtype:
        raise TypeError(f"items must have the interests' dtype {interests.dtype}, got {items.dtype}")
    if items.device != interests.device:
        raise ValueError(f"items must be on the interests' device {interests.device}, got {items.device}")


def _check_exclude(
    offsets: Tensor | None, ids: Tensor | None, num_users: int, num_items: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    if offsets is None and ids is None:
        return None
    if offsets is None or ids is None:
        missing = "exclude_offsets" if offsets is None else "exclude_ids"
        raise ValueError(f"exclude_offsets and exclude_ids must be given together, {missing} is missing")
    for name, tensor in (("exclude_offsets", offsets), ("exclude_ids", ids)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in INTEGERS:
            raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on the interests' device {device}, got {tensor.device}")
    if offsets.shape != (num_users + 1,):
        raise ValueError(f"exclude_offsets must have shape [{num_users + 1}], got {list(offsets.shape)}")
    if ids.dim() != 1:
        raise ValueError(f"exclude_ids must have shape [n], got {list(ids.shape)}")
    if offsets[0] < 0 or offsets[-1] > len(ids) or (offsets.diff() < 0).any():
        raise ValueError(
            f"exclude_offsets {list(offsets.shape)} must rise from 0 to at most {len(ids)}, the length of exclude_ids"
        )
    if ((ids < 0) | (ids >= num_items)).any():
        wrong = int(((ids < 0) | (ids >= num_items)).nonzero()[0])
        raise ValueError(
            f"exclude_ids {list(ids.shape)} must be rows of items, 0 to {num_items - 1}, "
            f"got {int(ids[wrong])} at position {wrong}"
        )
    return offsets, ids
