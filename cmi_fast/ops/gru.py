"""``gru``: the last state of a one-layer GRU over each sequence of item vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend
from cmi_fast.ops.checks import (
    FLOATING,
    as_int64,
    check_not_empty,
    check_same,
    check_sequences,
    check_shape,
    check_tensor,
    values_can_be_read,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.reference.rows import accumulation_type


def gru(
    items: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Run a one-layer GRU over each sequence, from a state of zeros, and return its last state.

    With :math:`W_r, W_z, W_n` the three blocks of ``weight_ih``, :math:`U` those of ``weight_hh``, and b, c of the
    biases,

    .. math:: r &= \sigma(W_r x + b_r + U_r h + c_r), \qquad z = \sigma(W_z x + b_z + U_z h + c_z), \\
              n &= \tanh(W_n x + b_n + r \odot (U_n h + c_n)), \qquad h \leftarrow (1 - z) \odot n + z \odot h.

    Args:
        items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). Rows beyond a length are never read.
        weight_ih: [3 hidden, d], as ``torch.nn.GRU`` has it.
        weight_hh: [3 hidden, hidden].
        bias_ih: [3 hidden], or None.
        bias_hh: [3 hidden], or None.
        lengths: [B] int, 0 <= length <= L; None: all L.
        offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.
        backend: ``"auto"``, ``"reference"`` or ``"cpu"``.

    Returns:
        [B, hidden], the dtype of ``items``. An empty sequence gives zeros.

    Raises:
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, length, offset or backend does not fit; the message names it.
        RuntimeError: a second derivative through the kernel (the reference has one).
    """
    check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
    check_parameters("items", items, weight_ih, weight_hh, bias_ih, bias_hh)
    items, weight_ih, weight_hh = cast_for_autocast(items, weight_ih, weight_hh)
    bias_ih, bias_hh = (None if bias is None else cast_for_autocast(bias)[0] for bias in (bias_ih, bias_hh))
    check_same(
        "items",
        items,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        bias_ih=bias_ih,
        bias_hh=bias_hh,
        lengths=lengths,
        offsets=offsets,
    )
    check_sequences("items", items, lengths, offsets)
    if choose_backend(backend, "gru", items, cpu=FLOATING) == "reference":
        if lengths is not None and values_can_be_read(lengths) and len(lengths):
            items = items[:, : max(1, int(lengths.max()))]
        with without_autocast(items.device):
            return reference.gru(items, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets)
    lengths = None if lengths is None else as_int64(lengths)
    offsets = None if offsets is None else as_int64(offsets)
    inputs = (items, weight_ih, weight_hh, bias_ih, bias_hh)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _gru(*inputs, lengths, offsets, save)


def check_parameters(
    name: str, rows: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> None:
    """Shapes as ``torch.nn.GRU`` has them, d that of ``rows`` [..., d]."""
    check_tensor("weight_ih", weight_ih, "[3 hidden, d]")
    check_tensor("weight_hh", weight_hh, "[3 hidden, hidden]")
    check_not_empty("weight_ih", weight_ih, "[3 hidden, d]")
    hidden = weight_hh.shape[1]
    check_shape("weight_hh", weight_hh, (3 * hidden, hidden), "[3 hidden, hidden]")
    check_shape("weight_ih", weight_ih, (3 * hidden, rows.shape[-1]), f"[3 hidden, d], as weight_hh and {name}")
    for bias_name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            check_tensor(bias_name, bias, "[3 hidden]")
            check_shape(bias_name, bias, (3 * hidden,), "[3 hidden], as weight_hh")


def empty_results(rows: int, batch: int, weight_hh: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """The last states, and what is saved of ``rows`` items, as to their shapes."""
    hidden = weight_hh.shape[1]
    # n, r, z, q and the state before each item, in the kernel's padding of rows.
    saved = weight_hh.new_empty(
        rows if save else 0, 5 * (-(-hidden // 16) * 16), dtype=accumulation_type(weight_hh.dtype)
    )
    return weight_hh.new_empty(batch, hidden), saved


def _fake(
    items: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    batch = items.shape[0] if offsets is None else offsets.shape[0] - 1
    return empty_results(items.shape[:-1].numel(), batch, weight_hh, save)


if _native.available:
    _gru = register_operator("cmi_fast", "gru", fake=_fake, differentiable=(0, 1, 2, 3, 4))
