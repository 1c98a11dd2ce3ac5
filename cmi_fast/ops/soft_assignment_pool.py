"""``soft_assignment_pool``: one interest per latent category, from a sequence of item vectors (Eq. 1-3)."""

from __future__ import annotations

from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    FLOATING,
    as_int64,
    check_same,
    check_sequences,
    check_shape,
    check_temperature,
    check_tensor,
    check_views,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.triton.registration import register_triton_operator

MOST_CATEGORIES_ON_CUDA = 64


def soft_assignment_pool(
    items: Tensor,
    categories: Tensor,
    lengths: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    views: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Assign items softly to m categories by cosine and pool one interest per category (Eq. 1-3).

    With unit vectors :math:`\hat v_i` of the items and :math:`\hat g_k` of the categories,

    .. math:: u_k = \sum_i p_{ik} \hat v_i, \qquad
              p_{ik} = \operatorname{softmax}_k (\hat v_i \cdot \hat g_k / \text{temperature}).

    The softmax runs over the categories, so every item spreads a weight of one over the interests.

    Args:
        items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). Rows beyond a length are never read.
        categories: [m, d].
        lengths: [B] int, 0 <= length <= L; None: all L.
        offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.
        temperature: positive; a 0-d tensor gets its gradient.
        views: bool [V, B, L] or [V, T], V <= 8: sub-sequences to pool beside each other, by membership (ANDed with the
            lengths). The assignment does not depend on the view and is computed once.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"`` (at most 64 categories; never run on
            a GPU yet, and never taken by ``"auto"``).

    Returns:
        Interests [B, m, d], or [V, B, m, d] with ``views``; the dtype of ``items``. An empty sequence gives zeros. A
        zero row counts as the zero vector and gets a zero gradient.

    Raises:
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset, temperature or backend does not fit; the message names it.
        RuntimeError: a second derivative through a kernel (the reference has one).
    """
    check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
    check_tensor("categories", categories, "[m, d]")
    items, categories = cast_for_autocast(items, categories)
    check_same("items", items, categories=categories, lengths=lengths, offsets=offsets, views=views)
    check_shape("categories", categories, (categories.shape[0], items.shape[-1]), "[m, d], d as items")
    if categories.numel() == 0:
        raise ValueError(
            f"categories: expected at least one category and one dimension, found {list(categories.shape)}"
        )
    check_sequences("items", items, lengths, offsets)
    check_views(views, items.shape[:-1])
    number, tensor = check_temperature(temperature, items)
    chosen = choose_backend(
        backend, "soft_assignment_pool", items, cpu=FLOATING, cuda_unsupported=too_many_for_cuda(categories)
    )
    if chosen == "reference":
        with without_autocast(items.device):
            temperature = number if tensor is None else tensor
            return reference.soft_assignment_pool(items, categories, lengths, offsets, temperature, views)
    lengths = None if lengths is None else as_int64(lengths)
    offsets = None if offsets is None else as_int64(offsets)
    operator = _triton_soft_assignment_pool if chosen == "triton" else _soft_assignment_pool
    return operator(items, categories, lengths, offsets, views, number, tensor)


def too_many_for_cuda(categories: Tensor) -> str | None:
    """What keeps the CUDA kernels, which hold an item's scores in shared memory, from these categories, or None."""
    found = categories.shape[0]
    if found <= MOST_CATEGORIES_ON_CUDA:
        return None
    return f"it takes at most {MOST_CATEGORIES_ON_CUDA} categories, found {found}"


def _fake(
    items: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
) -> Tensor:
    batch = items.shape[0] if offsets is None else offsets.shape[0] - 1
    return items.new_empty(*(() if views is None else views.shape[:1]), batch, *categories.shape)


if _native.available:
    _soft_assignment_pool = register_operator("cmi_fast", "soft_assignment_pool", fake=_fake, differentiable=(0, 1, 6))

_triton_soft_assignment_pool = register_triton_operator(
    "soft_assignment_pool",
    "Tensor items, Tensor categories, Tensor? lengths, Tensor? offsets, Tensor? views, float temperature, "
    "Tensor? temperature_tensor",
    outputs=1,
    differentiable=(0, 1, 6),
    fake=_fake,
)
