"""``capsule_routing``: interests by dynamic routing (MIND, ComiRec-DR)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    FLOATING,
    INTEGER,
    check_not_empty,
    check_places,
    check_range,
    check_same,
    check_sequences,
    check_shape,
    check_tensor,
    values_can_be_read,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.registration import register_triton_operator


def capsule_routing(
    items: Tensor,
    maps: Tensor,
    interests: int,
    lengths: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    logits: Tensor | None = None,
    active: Tensor | None = None,
    iterations: int = 3,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Route the items of a sequence to K interest capsules (MIND, ComiRec-DR).

    With :math:`u_{tk} = W x_t` (MIND: one map), :math:`W_k x_t`, or :math:`W_{tk} x_t` (ComiRec-DR: a map for each
    place and interest), plus the bias, and logits b, each iteration computes

    .. math:: w_{tk} = \operatorname{softmax}_k(b_{tk}), \qquad z_k = \sum_t w_{tk} u_{tk}, \qquad
              v_k = \frac{|z_k|^2}{1 + |z_k|^2} \frac{z_k}{\sqrt{|z_k|^2 + 10^{-9}}}, \qquad
              b_{tk} \leftarrow b_{tk} + u_{tk} \cdot v_k,

    and the last one's :math:`v_k` are the interests. The softmax runs over the interests, so every item spreads a
    weight of one over them; padding has none. The gradient goes through u of the last iteration alone, as in the
    original code: the weights :math:`w` count as constants, and ``logits`` gets no gradient.

    Args:
        items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). Rows beyond a length are never read.
        maps: [e, d], shared; [K, e, d], one an interest; or [P, K, e, d], one a place and interest: no sequence may
            then be longer than P.
        interests: K.
        lengths: [B] int, 0 <= length <= L; None: all L.
        bias: [e], added to every u; None: zeros.
        logits: [B, L, K], or [T, K] jagged: b to start from; None: zeros. With a shared map zeros would leave all
            interests equal.
        active: [B] int, from 1 to K: only the first ``active[b]`` interests of sequence b take part, the others are
            zeros. None: all.
        iterations: at least 1.
        offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``, which has no kernel for maps by place.

    Returns:
        Interests [B, K, e], the dtype of ``items``. An empty sequence gives zeros.

    Raises:
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset, count or backend does not fit; the message names it.
        RuntimeError: a second derivative through a kernel (the reference has one).
    """
    check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
    check_tensor("maps", maps, "[e, d] or [K, e, d] or [P, K, e, d]")
    check_not_empty("maps", maps, "[e, d] or [K, e, d] or [P, K, e, d]")
    for name, count in (("interests", interests), ("iterations", iterations)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, found {count}")
    places, out = maps.shape[:-3], maps.shape[-2]
    expected = (*places, *((interests,) if maps.dim() > 2 else ()), out, items.shape[-1])
    check_shape("maps", maps, expected, "[..., K, e, d], K as interests, d as items")
    if bias is not None:
        check_tensor("bias", bias, "[e]")
        check_shape("bias", bias, (out,), "[e], as maps")
    if logits is not None:
        check_tensor("logits", logits, "[T, K]" if offsets is not None else "[B, L, K]")
        check_shape("logits", logits, (*items.shape[:-1], interests), "as items, K for d")
    batch = items.shape[0] if offsets is None else offsets.shape[0] - 1
    if active is not None:
        check_tensor("active", active, "[B]", INTEGER)
        check_shape("active", active, (batch,), "[B], as items")
        if values_can_be_read(active):
            check_range("active", active, 1, interests + 1, ValueError)
    items, maps = cast_for_autocast(items, maps)
    bias, logits = (None if x is None else cast_for_autocast(x)[0] for x in (bias, logits))
    check_same("items", items, maps=maps, bias=bias, logits=logits, active=active, lengths=lengths, offsets=offsets)
    check_sequences("items", items, lengths, offsets)
    if places:
        check_places("maps", places[0], items, offsets)
        maps = maps if offsets is not None else maps[: max(items.shape[1], 1)]
    maps = maps[(None,) * (4 - maps.dim())]
    with without_autocast(items.device):
        by_place = "it has no kernel for maps that differ by place" if maps.shape[0] > 1 else None
        chosen = choose_backend(backend, "capsule_routing", items, cpu=FLOATING, triton_unsupported=by_place)
        if chosen == "reference":
            return reference.capsule_routing(items, maps, interests, lengths, offsets, bias, logits, active, iterations)
        wide = accumulation_type(items.dtype)
        maps = maps.to(wide)
        bias, logits = (None if x is None else x.to(wide) for x in (bias, logits))
    active, lengths, offsets = (None if x is None else x.to(torch.int64) for x in (active, lengths, offsets))
    logits = None if logits is None else logits.detach()
    operator = _triton_capsule_routing if chosen == "triton" else _capsule_routing
    return operator(items, maps, bias, logits, active, lengths, offsets, interests, iterations)


def _fake(
    items: Tensor,
    maps: Tensor,
    bias: Tensor | None,
    logits: Tensor | None,
    active: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    interests: int,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = items.shape[0] if offsets is None else offsets.shape[0] - 1
    shape = (batch, interests, maps.shape[-2])
    weights = maps.new_empty(items.shape[:-1].numel(), interests)
    pooled = maps.new_empty(batch if maps.shape[0] == 1 else 0, interests, items.shape[-1])
    return items.new_empty(shape), weights, maps.new_empty(shape), pooled


if _native.available:
    _capsule_routing = register_operator("cmi_fast", "capsule_routing", fake=_fake, differentiable=(0, 1, 2))

_triton_capsule_routing = register_triton_operator(
    "capsule_routing",
    "Tensor items, Tensor maps, Tensor? bias, Tensor? logits, Tensor? active, Tensor? lengths, Tensor? offsets, "
    "int interests, int iterations",
    outputs=4,
    differentiable=(0, 1, 2),
    fake=_fake,
)
