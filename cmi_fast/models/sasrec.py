"""SASRec's encoder: a causal Transformer over a sequence of items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SASRecEncoder(nn.Module):
    """States z_t of items x_1 ... x_t, as in the public code of DSSRec: post-norm, one head.

    Sequences are padded on the right, so that causal attention never sees padding. Positions are counted from a
    sequence's end, as they are in that code, which pads on the left.

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

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """States [B, L, d] of items [B, L, d]; those beyond a length mean nothing."""
        place = torch.arange(items.shape[1], device=items.device) - lengths[:, None]  # -1: the last
        states = F.dropout(self.norm(items + self.positions[place]), self.dropout, self.training)
        for layer in self.layers:
            states = layer(states)
        return states


class _Layer(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(dim, eps=1e-12)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            self.query(x), self.key(x), self.value(x), dropout_p=dropout, is_causal=True
        )
        x = self.attention_norm(x + F.dropout(self.output(attended), dropout))
        hidden = F.relu(self.outer(F.dropout(F.relu(self.inner(x)), dropout)))
        return self.feed_forward_norm(x + F.dropout(hidden, dropout))
