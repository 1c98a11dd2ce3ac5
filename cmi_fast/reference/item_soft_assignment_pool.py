"""Eq. 1-3 from item ids: the rows of the table, then soft assignment and pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.reference.soft_assignment_pool import soft_assignment_pool


def item_soft_assignment_pool(
    ids: Tensor,
    table: Tensor,
    categories: Tensor,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    views: Tensor | None = None,
    sparse_grad: bool = False,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.item_soft_assignment_pool``."""
    items = gather(ids, table, lengths, sparse_grad).to(categories.dtype)
    return soft_assignment_pool(items, categories, lengths, offsets, temperature, views)


def gather(ids: Tensor, table: Tensor, lengths: Tensor | None, sparse_grad: bool = False) -> Tensor:
    """The rows of ``table`` that ``ids`` [B, L] or [T] name within ``lengths``, [..., d], in the type sums run in."""
    member = torch.ones_like(ids, dtype=torch.bool)
    if lengths is not None:
        member = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return (_gather_members if sparse_grad or len(table) == 0 else _gather)(ids, table, member)


def _gather(ids: Tensor, table: Tensor, member: Tensor) -> Tensor:
    """[..., d]: what lies outside a sequence is some row of the table, which the pooling leaves out."""
    # Widened before the gather, so that the gradients of a repeated item add up in the wide type.
    return F.embedding(ids.masked_fill(~member, 0), table.to(accumulation_type(table.dtype)))


def _gather_members(ids: Tensor, table: Tensor, member: Tensor) -> Tensor:
    """The same, reading members alone: the sparse gradient holds each of their rows once, and no other."""
    distinct, place = ids[member].unique(return_inverse=True)
    rows = F.embedding(distinct, table, sparse=True).to(accumulation_type(table.dtype))
    items = rows.new_zeros(*ids.shape, table.shape[1])
    return items.index_put((member,), F.embedding(place, rows))
