"""A GRU from item ids: the rows of the table, then the GRU over them."""

from __future__ import annotations

from torch import Tensor

from cmi_fast.reference.gru import gru
from cmi_fast.reference.item_soft_assignment_pool import gather
from cmi_fast.reference.rows import unit_rows


def item_gru(
    ids: Tensor,
    table: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.item_gru``."""
    items = gather(ids, table, lengths)
    items = (unit_rows(items) if normalize else items).to(weight_ih.dtype)
    return gru(items, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets)
