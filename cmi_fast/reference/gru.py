"""A GRU over each sequence, of which the last state is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from cmi_fast.reference.sequences import pad


def gru(
    items: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.gru``. torch's own GRU, in the dtype of ``items``: cuDNN's on CUDA."""
    if offsets is not None:
        items, lengths = pad(items, offsets)
    elif lengths is None:
        lengths = torch.full(items.shape[:1], items.shape[1], device=items.device)
    hidden = weight_hh.shape[1]
    if items.shape[0] == 0 or items.shape[1] == 0:
        return items.new_zeros(items.shape[0], hidden)
    inside = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    items = items.masked_fill(~inside[..., None], 0)  # a NaN would reach the weights' gradient: 0 * NaN is NaN
    start = items.new_zeros(1, items.shape[0], hidden)
    # torch has both biases or none.
    biases = [items.new_zeros(len(weight_ih)) if bias is None else bias for bias in (bias_ih, bias_hh)]
    # Padded, then the last state: pack_padded_sequence takes seven times as long.
    states, _ = torch.gru(items, start, (weight_ih, weight_hh, *biases), True, 1, 0.0, False, False, True)
    last = (lengths.to(torch.int64) - 1).clamp_min(0)[:, None, None].expand(-1, 1, hidden)
    return states.gather(1, last).squeeze(1).masked_fill((lengths == 0)[:, None], 0)
