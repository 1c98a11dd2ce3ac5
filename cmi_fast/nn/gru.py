"""A GRU that returns a sequence's last state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmi_fast.ops.autocast import autocast_enabled
from cmi_fast.ops.checks import check_device, check_same, check_sequences, check_shape, check_tensor, values_can_be_read


class GRU(nn.RNNBase):
    """A one-layer GRU over item vectors, of which only the last state of each sequence is wanted.

    Parameters and ``state_dict`` are those of ``torch.nn.GRU(input_size, hidden_size, bias=bias)``: either loads the
    other's. Sequences are batch-first always.

    Args:
        input_size: d.
        hidden_size: of the state.
        bias: whether the gates have biases.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__("GRU", input_size, hidden_size, bias=bias, batch_first=True)

    def forward(self, items: Tensor, lengths: Tensor | None = None, *, offsets: Tensor | None = None) -> Tensor:
        """The last valid state [B, hidden_size] of each sequence; zeros for an empty one.

        Args:
            items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). What lies beyond a length does not matter.
                One compiled graph takes padded items only: the longest length of jagged ones is a value.
            lengths: [B] int, 0 <= length <= L; None: all L.
            offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.

        Raises:
            TypeError: the dtype of ``items`` is not the parameters' (under autocast they may differ).
            ValueError: a shape, length, offset or device does not fit; the message names it.
        """
        check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
        check_shape("items", items, (*items.shape[:-1], self.input_size), "d is input_size")
        weight = self.all_weights[0][0]
        check_device("the parameters", weight, items=items)
        if not autocast_enabled(items.device):
            check_same("the parameters", weight, items=items)
        check_same("items", items, lengths=lengths, offsets=offsets)
        check_sequences("items", items, lengths, offsets)
        if offsets is not None:
            items, lengths = _pad(items, offsets)
        elif lengths is None:
            lengths = torch.full(items.shape[:1], items.shape[1], device=items.device)
        elif values_can_be_read(lengths) and len(lengths):
            items = items[:, : max(1, int(lengths.max()))]
        return self._last_states(items, lengths)

    def _last_states(self, items: Tensor, lengths: Tensor) -> Tensor:
        if items.shape[0] == 0 or items.shape[1] == 0:
            return items.new_zeros(items.shape[0], self.hidden_size)
        inside = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        items = items.masked_fill(~inside[..., None], 0)  # a NaN would reach the weights' gradient: 0 * NaN is NaN
        start = items.new_zeros(1, items.shape[0], self.hidden_size)
        weights = self.all_weights[0]
        # Padded, then the last state: pack_padded_sequence takes seven times as long.
        states, _ = torch.gru(items, start, tuple(weights), self.bias, 1, 0.0, self.training, False, True)
        last = (lengths.to(torch.int64) - 1).clamp_min(0)[:, None, None].expand(-1, 1, self.hidden_size)
        return states.gather(1, last).squeeze(1).masked_fill((lengths == 0)[:, None], 0)


def _pad(items: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Jagged ``items`` [T, d] as [B, L, d], L the longest length, and the lengths [B]."""
    lengths = offsets.diff()
    longest = max(1, int(lengths.max())) if len(lengths) else 1
    position = torch.arange(len(items), device=items.device)
    sequence = torch.searchsorted(offsets, position, right=True) - 1
    padded = items.new_zeros(len(lengths), longest, items.shape[1])
    return padded.index_put((sequence, position - offsets[sequence]), items), lengths
