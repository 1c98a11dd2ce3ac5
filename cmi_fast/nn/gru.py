"""A GRU that returns a sequence's last state."""

from __future__ import annotations

from torch import Tensor, nn

from cmi_fast import functional
from cmi_fast.ops.autocast import autocast_enabled
from cmi_fast.ops.checks import check_device, check_same, check_shape, check_tensor


class GRU(nn.RNNBase):
    """A one-layer GRU over item vectors, of which only the last state of each sequence is wanted.

    Parameters and ``state_dict`` are those of ``torch.nn.GRU(input_size, hidden_size, bias=bias)``: either loads the
    other's. Sequences are batch-first always.

    Args:
        input_size: d.
        hidden_size: of the state.
        bias: whether the gates have biases.
        backend: as in :func:`cmi_fast.functional.gru`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, backend: str = "auto") -> None:
        super().__init__("GRU", input_size, hidden_size, bias=bias, batch_first=True)
        self.backend = backend

    def forward(self, items: Tensor, lengths: Tensor | None = None, *, offsets: Tensor | None = None) -> Tensor:
        """The last valid state [B, hidden_size] of each sequence; zeros for an empty one.

        Args:
            items: [B, L, d] padded, or [T, d] jagged (with ``offsets``). What lies beyond a length does not matter.
                Without a compiled kernel, one compiled graph takes padded items only: the longest length of jagged
                ones is a value.
            lengths: [B] int, 0 <= length <= L; None: all L.
            offsets: [B + 1] int, from 0 to T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.

        Raises:
            TypeError: the dtype of ``items`` is not the parameters' (under autocast they may differ).
            ValueError: a shape, length, offset or device does not fit; the message names it.
        """
        check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
        check_shape("items", items, (*items.shape[:-1], self.input_size), "d is input_size")
        weight_ih, weight_hh, bias_ih, bias_hh = self._parameters_of_gates()
        check_device("the parameters", weight_ih, items=items)
        if not autocast_enabled(items.device):
            check_same("the parameters", weight_ih, items=items)
        return functional.gru(
            items, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets=offsets, backend=self.backend
        )

    def from_ids(
        self,
        ids: Tensor,
        table: Tensor,
        lengths: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        normalize: bool = False,
    ) -> Tensor:
        """The last states [B, hidden_size] over the rows ``ids`` of ``table`` [V, d], which are gathered as they are
        read; arguments and errors as of :func:`cmi_fast.functional.item_gru`."""
        weight_ih, weight_hh, bias_ih, bias_hh = self._parameters_of_gates()
        return functional.item_gru(
            ids,
            table,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            lengths,
            offsets=offsets,
            normalize=normalize,
            backend=self.backend,
        )

    def _parameters_of_gates(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        weight_ih, weight_hh, *biases = self.all_weights[0]
        bias_ih, bias_hh = biases or (None, None)
        return weight_ih, weight_hh, bias_ih, bias_hh
