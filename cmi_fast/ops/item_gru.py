"""``item_gru``: the last state of a one-layer GRU over each sequence of items, from their ids and table."""

from __future__ import annotations

import torch
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
    check_same,
    check_sequences,
    check_tensor,
    values_can_be_read,
)
from cmi_fast.ops.gru import check_parameters, empty_results
from cmi_fast.ops.register_operator import register_operator


def item_gru(
    ids: Tensor,
    table: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    normalize: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run a one-layer GRU over the items ``table[ids]`` of each sequence, and return its last state.

    The same as ``gru(F.embedding(ids, table), ...)``, or with ``normalize`` as ``gru(F.normalize(...), ...)`` of that,
    without the items in memory.

    Args:
        ids: [B, L] int padded, or [T] int jagged (with ``offsets``): rows of ``table``. Ids at or beyond a length are
            never read and may hold anything.
        table: [V, d]. Under autocast it keeps its dtype, and rows are converted as they are gathered.
        weight_ih: [3 hidden, d], as ``torch.nn.GRU`` has it.
        weight_hh: [3 hidden, hidden].
        bias_ih: [3 hidden], or None.
        bias_hh: [3 hidden], or None.
        lengths: [B] int, 0 <= length <= L; None: all L.
        offsets: [B + 1] int, from 0 to T; sequence b is ``ids[offsets[b]:offsets[b + 1]]``.
        normalize: scale the items to unit length. A zero row counts as the zero vector and gets a zero gradient.
        backend: ``"auto"``, ``"reference"`` or ``"cpu"``.

    Returns:
        [B, hidden], the dtype of ``table``, under autocast the autocast type. An empty sequence gives zeros.

    Raises:
        IndexError: an id within its sequence is no row of ``table``; the message names the first.
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset or backend does not fit; the message names it.
        RuntimeError: a second derivative through the kernel (the reference has one).
    """
    check_tensor("ids", ids, "[T]" if offsets is not None else "[B, L]", INTEGER)
    check_tensor("table", table, "[V, d]")
    check_parameters("table", table, weight_ih, weight_hh, bias_ih, bias_hh)
    check_device("table", table, weight_ih=weight_ih)
    if autocast_enabled(table.device):
        weight_ih, weight_hh = cast_for_autocast(weight_ih, weight_hh)
        bias_ih, bias_hh = (None if bias is None else cast_for_autocast(bias)[0] for bias in (bias_ih, bias_hh))
    else:
        check_same("table", table, weight_ih=weight_ih)
    check_same(
        "table" if weight_ih.dtype == table.dtype else "weight_ih",
        weight_ih,
        weight_hh=weight_hh,
        bias_ih=bias_ih,
        bias_hh=bias_hh,
        ids=ids,
        lengths=lengths,
        offsets=offsets,
    )
    check_sequences("ids", ids, lengths, offsets)
    mixed = table.dtype != weight_ih.dtype and torch.float64 in (table.dtype, weight_ih.dtype)
    chosen = choose_backend(
        backend,
        "item_gru",
        table,
        cpu=FLOATING,
        unsupported="it has no kernel for float64 beside another dtype" if mixed else None,
    )
    can_check = values_can_be_read(ids)
    if chosen == "reference":
        if can_check:
            check_ids(ids, table, lengths)
        with without_autocast(table.device):
            return reference.item_gru(ids, table, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets, normalize)
    lengths, offsets = (None if x is None else as_int64(x) for x in (lengths, offsets))
    inputs = (table, weight_ih, weight_hh, bias_ih, bias_hh)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    try:
        return _item_gru(as_int64(ids), *inputs, lengths, offsets, normalize, save)
    except RuntimeError:
        if can_check:  # the operator has found an id that is no row; this names its position
            check_ids(ids, table, lengths)
        raise


def _fake(
    ids: Tensor,
    table: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    normalize: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    batch = ids.shape[0] if offsets is None else offsets.shape[0] - 1
    return empty_results(ids.numel(), batch, weight_hh, save)


if _native.available:
    _item_gru = register_operator("cmi_fast", "item_gru", fake=_fake, differentiable=(1, 2, 3, 4, 5))
