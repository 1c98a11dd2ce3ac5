"""SASRec's encoder: a causal Transformer over a sequence of items."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32  # sequences: fewer and the calls cost more than the padding


class Group(NamedTuple):
    """Some sequences of about one length, which pad each other little. Their rows lie one sequence behind the other.

    lengths [G]; place [G, L]: which row stands there, any where none does; filled [rows]: where a row stands in the
    flattened place.
    """

    lengths: Tensor
    place: Tensor
    filled: Tensor

    def pad(self, rows: Tensor) -> Tensor:
        """[G, L, d] of ``rows`` [rows, d]; what lies beyond a length means nothing."""
        # Not by indexing, whose backward runs on one thread.
        return F.embedding(self.place, rows) if len(rows) else rows.new_zeros(*self.place.shape, rows.shape[1])

    def unpad(self, padded: Tensor) -> Tensor:
        """The rows again, of ``padded`` [G, L, d]."""
        return F.embedding(self.filled, padded.flatten(0, 1))


def group(lengths: Tensor) -> list[Group]:
    """Groups of sequences, in their order, which should be that of ``lengths`` [B]."""
    groups = []
    for some in lengths.split(GROUP):
        column = torch.arange(max(1, int(some.max())), device=lengths.device)
        inside = column < some[:, None]
        begin = some.cumsum(0) - some
        groups.append(Group(some, torch.where(inside, begin[:, None] + column, 0), inside.flatten().nonzero()[:, 0]))
    return groups


class SASRecEncoder(nn.Module):
    """States z_t of items x_1 ... x_t, as in the public code of DSSRec: post-norm, one head.

    All but attention is done for the items alone, without padding. For attention sequences are padded on the right, so
    that it, being causal, never sees padding. Positions are counted from a sequence's end, as they are in that code,
    which pads on the left.

    Args:
        dim: d.
        max_length: P, how many of the last places have a position vector of their own.
        layers: of attention and feed-forward.
        dropout: share of the activations dropped in training.
    """

    def __init__(self, dim: int, max_length: int, layers: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max_length, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.ModuleList(_Layer(dim, dropout) for _ in range(layers))
        self.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, items: Tensor, groups: list[Group]) -> Tensor:
        """States [T, d] of the ``items`` [T, d] of all ``groups``, one behind the other."""
        lengths = torch.cat([some.lengths for some in groups])
        # From a sequence's end: -1 is the last.
        place = torch.arange(len(items), device=items.device) - lengths.cumsum(0).repeat_interleave(lengths)
        positions = F.embedding(place + len(self.positions), self.positions)
        states = F.dropout(self.norm(items + positions), self.dropout, self.training)
        for layer in self.layers:
            states = layer(states, groups)
        return states


class _Layer(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(dim, eps=1e-12)
        self.dropout = dropout

    def forward(self, x: Tensor, groups: list[Group]) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        projections = self.query, self.key, self.value
        together = F.linear(x, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]))
        attended = []
        for some, rows in zip(groups, together.split([len(some.filled) for some in groups]), strict=True):
            query, key, value = some.pad(rows).chunk(3, dim=-1)
            seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
            attended.append(some.unpad(seen))
        x = self.attention_norm(x + F.dropout(self.output(torch.cat(attended)), dropout))
        hidden = F.relu(self.outer(F.dropout(F.relu(self.inner(x)), dropout)))
        return self.feed_forward_norm(x + F.dropout(hidden, dropout))
