"""``top_k``: exact retrieval for users with several interests."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.backend import choose_backend

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
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The ``k`` items of largest score for each user, exactly; an item's score is the maximum over the
    user's interests of their inner product, as in Eq. 7 of CMI and in ComiRec.

    The compiled kernel compares scores in float64 and rounds those of the lists to float32 at the end: the lists are
    the same to the bit on every CPU and on any number of threads. It screens items at low precision and computes the
    scores of those alone that an upper bound lets pass, so it takes longer where very many items tie for a place. The
    reference computes in float32 (float64 for float64): near-ties may fall otherwise there.

    Args:
        interests: [U, m, d], m >= 1.
        items: [V, d], of the interests' dtype and device. Half precision is widened.
        k: length of the lists, at least 1.
        exclude_offsets, exclude_ids: int32 or int64; the items ``exclude_ids[exclude_offsets[u] :
            exclude_offsets[u + 1]]`` (rows of ``items``, repeats allowed) are left out for user u.
        backend: ``"auto"``, ``"reference"`` or ``"cpu"`` (all types but float64).

    Returns:
        scores [U, k] (float32, or float64 for float64) by falling score, and rows of ``items``
        [U, k] int64; equal scores by row, the smaller first. Where fewer than ``k`` items remain, the
        lists end in -inf and -1. No gradient flows. Memory beside the result does not grow with
        U, m or V, but for a copy of ``exclude_ids`` and, in the kernel, for lists of 16 bytes an entry.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or range, or a value that is not finite.
    """
    _check_vectors(interests, items)
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    exclude = _check_exclude(exclude_offsets, exclude_ids, len(interests), len(items), interests.device)
    chosen = choose_backend(
        backend,
        "top_k",
        interests,
        cpu=FLOATS[:3],
        unsupported=None if interests.shape[2] else "its kernel takes vectors of length 1 and more",
    )
    if chosen == "reference":
        _check_finite(interests, items)
        return reference.top_k(interests, items, k, *exclude)
    try:
        return _top_k(interests, items, k, *(None if x is None else x.to(torch.int64) for x in exclude), "auto")
    except RuntimeError:
        _check_finite(interests, items)  # the operator has found a value that is not; this says in which argument
        raise


def _check_vectors(interests: Tensor, items: Tensor) -> None:
    for name, tensor, shape in (("interests", interests, "[U, m, d]"), ("items", items, "[V, d]")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {type(tensor).__name__}")
        if tensor.dim() != shape.count(",") + 1:
            raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
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


def _check_finite(interests: Tensor, items: Tensor) -> None:
    for name, tensor in (("interests", interests), ("items", items)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} {list(tensor.shape)} must be finite, found NaN or infinity")


def _check_exclude(
    offsets: Tensor | None, ids: Tensor | None, num_users: int, num_items: int, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if offsets is None and ids is None:
        return None, None
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


def _fake(
    interests: Tensor,
    items: Tensor,
    k: int,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    shape = (interests.shape[0], k)
    return interests.new_empty(shape, dtype=torch.float32), interests.new_empty(shape, dtype=torch.int64)


if _native.available:
    _top_k = torch.ops.cmi_fast.top_k.default
    torch.library.register_fake("cmi_fast::top_k", _fake)
