"""``item_soft_assignment_pool``: one interest per latent category, from item ids and their table (Eq. 1-3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import autocast_enabled, cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    FLOATING,
    INTEGER,
    as_int64,
    check_device,
    check_ids,
    check_not_empty,
    check_same,
    check_sequences,
    check_shape,
    check_temperature,
    check_tensor,
    check_views,
    values_can_be_read,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.ops.soft_assignment_pool import too_many_for_cuda
from cmi_fast.triton.registration import register_triton_operator


def item_soft_assignment_pool(
    ids: Tensor,
    table: Tensor,
    categories: Tensor,
    lengths: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    views: Tensor | None = None,
    sparse_grad: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Assign the items ``table[ids]`` softly to m categories and pool one interest per category (Eq. 1-3).

    The same as ``soft_assignment_pool(F.embedding(ids, table), categories, ...)``: with unit vectors
    :math:`\hat v_i` of the table's rows and :math:`\hat g_k` of the categories,

    .. math:: u_k = \sum_i p_{ik} \hat v_i, \qquad
              p_{ik} = \operatorname{softmax}_k (\hat v_i \cdot \hat g_k / \text{temperature}).

    Args:
        ids: [B, L] int padded, or [T] int jagged (with ``offsets``): rows of ``table``. Ids at or beyond a length are
            never read and may hold anything.
        table: [V, d]. Under autocast it keeps its dtype, and rows are converted as they are gathered.
        categories: [m, d].
        lengths: [B] int, 0 <= length <= L; None: all L.
        offsets: [B + 1] int, from 0 to T; sequence b is ``ids[offsets[b]:offsets[b + 1]]``.
        temperature: positive; a 0-d tensor gets its gradient.
        views: bool [V, B, L] or [V, T], V <= 8: sub-sequences to pool beside each other, by membership (ANDed with the
            lengths). The assignment does not depend on the view and is computed once.
        sparse_grad: the table's gradient as a sparse COO tensor that holds the rows read, and no other. Eager only.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"`` (at most 64 categories; never run on
            a GPU yet, and never taken by ``"auto"``).

    Returns:
        Interests [B, m, d], or [V, B, m, d] with ``views``; the dtype of ``table``, under autocast the autocast type.
        An empty sequence gives zeros. A zero row counts as the zero vector and gets a zero gradient.

    Raises:
        IndexError: an id within its sequence is no row of ``table``; the message names the first.
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset, temperature or backend does not fit, or ``sparse_grad`` inside a compiled
            graph; the message names it.
    """
    check_tensor("ids", ids, "[T]" if offsets is not None else "[B, L]", INTEGER)
    check_tensor("table", table, "[V, d]")
    check_tensor("categories", categories, "[m, d]")
    check_device("table", table, categories=categories)
    if autocast_enabled(table.device):
        (categories,) = cast_for_autocast(categories)
        check_same("categories", categories, ids=ids, lengths=lengths, offsets=offsets, views=views)
    else:
        check_same("table", table, categories=categories, ids=ids, lengths=lengths, offsets=offsets, views=views)
    check_shape("categories", categories, (categories.shape[0], table.shape[1]), "[m, d], d as table")
    check_not_empty("categories", categories, "[m, d]")
    check_sequences("ids", ids, lengths, offsets)
    check_views(views, ids.shape)
    number, tensor = check_temperature(temperature, categories)
    if sparse_grad and torch.compiler.is_compiling():
        raise ValueError("sparse_grad: expected False inside a compiled graph, which has no sparse gradients")
    mixed = table.dtype != categories.dtype and torch.float64 in (table.dtype, categories.dtype)
    chosen = choose_backend(
        backend,
        "item_soft_assignment_pool",
        table,
        cpu=FLOATING,
        unsupported="it has no kernel for float64 beside another dtype" if mixed else None,
        cuda_unsupported=too_many_for_cuda(categories),
    )
    can_check = values_can_be_read(ids)
    if can_check and (chosen != "cpu" or sparse_grad):
        check_ids(ids, table, lengths)
    if chosen == "reference":
        with without_autocast(table.device):
            temperature = number if tensor is None else tensor
            return reference.item_soft_assignment_pool(
                ids, table, categories, lengths, offsets, temperature, views, sparse_grad
            )
    ids = as_int64(ids)
    lengths, offsets = (None if x is None else as_int64(x) for x in (lengths, offsets))
    if sparse_grad:
        ids, table = _rows_read(ids, table, lengths)
    operator = _triton_item_soft_assignment_pool if chosen == "triton" else _item_soft_assignment_pool
    try:
        return operator(ids, table, categories, lengths, offsets, views, number, tensor)
    except RuntimeError:
        if can_check:  # the CPU operator has found an id that is no row; this names its position
            check_ids(ids, table, lengths)
        raise


def _rows_read(ids: Tensor, table: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of ``table`` that are read, once each and with a sparse gradient to it, and the ids among them."""
    inside = torch.ones_like(ids, dtype=torch.bool)
    if lengths is not None:
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    distinct, place = ids[inside].unique(return_inverse=True)
    return torch.zeros_like(ids).masked_scatter(inside, place), F.embedding(distinct, table, sparse=True)


def _fake(
    ids: Tensor,
    table: Tensor,
    categories: Tensor,
    lengths: Tensor | None,
    offsets: Tensor | None,
    views: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
) -> Tensor:
    batch = ids.shape[0] if offsets is None else offsets.shape[0] - 1
    return categories.new_empty(*(() if views is None else views.shape[:1]), batch, *categories.shape)


if _native.available:
    _item_soft_assignment_pool = register_operator(
        "cmi_fast", "item_soft_assignment_pool", fake=_fake, differentiable=(1, 2, 7)
    )

_triton_item_soft_assignment_pool = register_triton_operator(
    "item_soft_assignment_pool",
    "Tensor ids, Tensor table, Tensor categories, Tensor? lengths, Tensor? offsets, Tensor? views, float temperature, "
    "Tensor? temperature_tensor",
    outputs=1,
    differentiable=(1, 2, 7),
    fake=_fake,
)
