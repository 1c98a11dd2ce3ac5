"""``self_attentive_pool``: one attention over a sequence for each interest (ComiRec-SA)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    FLOATING,
    check_not_empty,
    check_places,
    check_same,
    check_sequences,
    check_shape,
    check_tensor,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.registration import register_triton_operator


def self_attentive_pool(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    lengths: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Pool K interests from a sequence, each with an attention of its own over the items (ComiRec-SA).

    With the item :math:`x_t` and the position :math:`p_t` of place t,

    .. math:: u_k = \sum_t a_{tk} x_t, \qquad
              a_{tk} = \operatorname{softmax}_t \bigl( q_k \cdot \tanh(W (x_t + p_t) + c) \bigr).

    The softmax runs over the items of a sequence, not over the interests, and never over padding. A bias added to the
    scores of an interest, as the original has it, would drop out of this softmax, so there is none.

    Args:
        items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). Rows beyond a length are never read.
        weight: [h, d], W.
        queries: [K, h].
        lengths: [B] int, 0 <= length <= L; None: all L.
        bias: [h], c; None: zeros.
        positions: [P, d], added to the item at each place of its sequence for the scores alone; no sequence may be
            longer than P. None: zeros.
        offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Returns:
        Interests [B, K, d], the dtype of ``items``. An empty sequence gives zeros.

    Raises:
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset or backend does not fit; the message names it.
        RuntimeError: a second derivative through a kernel (the reference has one).
    """
    check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
    check_tensor("weight", weight, "[h, d]")
    check_tensor("queries", queries, "[K, h]")
    check_not_empty("weight", weight, "[h, d]")
    check_not_empty("queries", queries, "[K, h]")
    check_shape("weight", weight, (len(weight), items.shape[-1]), "[h, d], d as items")
    check_shape("queries", queries, (len(queries), len(weight)), "[K, h], h as weight")
    if bias is not None:
        check_tensor("bias", bias, "[h]")
        check_shape("bias", bias, (len(weight),), "[h], as weight")
    if positions is not None:
        check_tensor("positions", positions, "[P, d]")
        check_not_empty("positions", positions, "[P, d]")
        check_shape("positions", positions, (len(positions), items.shape[-1]), "[P, d], d as items")
    items, weight, queries = cast_for_autocast(items, weight, queries)
    bias, positions = (None if x is None else cast_for_autocast(x)[0] for x in (bias, positions))
    check_same(
        "items",
        items,
        weight=weight,
        queries=queries,
        bias=bias,
        positions=positions,
        lengths=lengths,
        offsets=offsets,
    )
    check_sequences("items", items, lengths, offsets)
    if positions is not None:
        check_places("positions", len(positions), items, offsets)
    with without_autocast(items.device):
        chosen = choose_backend(backend, "self_attentive_pool", items, cpu=FLOATING)
        if chosen == "reference":
            return reference.self_attentive_pool(items, weight, queries, lengths, offsets, bias, positions)
        wide = accumulation_type(items.dtype)
        weight, queries = weight.to(wide), queries.to(wide)
        bias, positions = (None if x is None else x.to(wide) for x in (bias, positions))
    lengths = None if lengths is None else lengths.to(torch.int64)
    offsets = None if offsets is None else offsets.to(torch.int64)
    operator = _triton_self_attentive_pool if chosen == "triton" else _self_attentive_pool
    return operator(items, weight, queries, bias, positions, lengths, offsets)


def _fake(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch = items.shape[0] if offsets is None else offsets.shape[0] - 1
    pooled = items.new_empty(batch, queries.shape[0], items.shape[-1])
    return pooled, weight.new_empty(items.shape[:-1].numel(), queries.shape[0])


if _native.available:
    _self_attentive_pool = register_operator(
        "cmi_fast", "self_attentive_pool", fake=_fake, differentiable=(0, 1, 2, 3, 4)
    )

_triton_self_attentive_pool = register_triton_operator(
    "self_attentive_pool",
    "Tensor items, Tensor weight, Tensor queries, Tensor? bias, Tensor? positions, Tensor? lengths, Tensor? offsets",
    outputs=2,
    differentiable=(0, 1, 2, 3, 4),
    fake=_fake,
)
