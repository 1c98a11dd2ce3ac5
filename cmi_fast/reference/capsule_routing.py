"""MIND and ComiRec-DR: interests as capsules, routed to in a few iterations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.reference.sequences import padded_rows


def capsule_routing(
    items: Tensor,
    maps: Tensor,
    interests: int,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    logits: Tensor | None = None,
    active: Tensor | None = None,
    iterations: int = 3,
) -> Tensor:
    """Shapes as in ``cmi_fast.functional.capsule_routing``; ``maps`` [P or 1, K or 1, e, d]."""
    compute = accumulation_type(items.dtype)
    rows, inside = padded_rows(items, lengths, offsets)
    rows, maps = rows.to(compute), maps.to(compute)
    maps = maps.expand(maps.shape[0], interests, -1, -1)
    if maps.shape[0] == 1:
        mapped = torch.einsum("bld,ked->blke", rows, maps[0])  # u [B, L, K, e]
    else:
        mapped = torch.einsum("bld,lked->blke", rows, maps[: rows.shape[1]])
    if bias is not None:
        mapped = mapped + bias.to(compute)
    score = rows.new_zeros(*rows.shape[:2], interests)  # b [B, L, K]
    if logits is not None:
        score = padded_rows(logits.detach().to(compute), lengths, offsets)[0]
    off = score.new_zeros(len(score), interests, dtype=torch.bool)  # [B, K]
    if active is not None:
        off = torch.arange(interests, device=items.device) >= active[:, None]
    for iteration in range(1, iterations + 1):
        live = mapped if iteration == iterations else mapped.detach()
        weights = torch.softmax(score.masked_fill(off[:, None], -math.inf), dim=-1) * inside[..., None]
        capsules = squash(torch.einsum("blk,blke->bke", weights, live))
        score = score + torch.einsum("blke,bke->blk", live, capsules)
    return capsules.to(items.dtype)


def squash(rows: Tensor) -> Tensor:
    """``rows`` [..., e] with their norm n replaced by n^2 / (1 + n^2), as ComiRec writes it: zero rows stay zero."""
    square = rows.square().sum(-1, keepdim=True)
    return square / (1 + square) / torch.sqrt(square + 1e-9) * rows
