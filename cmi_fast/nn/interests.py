"""Interests from a sequence of item vectors, as ComiRec, MIND, Octopus and DSSRec extract them.

Every layer takes items [B, L, d] with ``lengths`` [B], padded on the right, or [T, d] with ``offsets`` [B + 1], and
returns interests [B, K, d]. What lies beyond a length does not matter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast import functional
from cmi_fast.ops.autocast import without_autocast
from cmi_fast.ops.checks import check_choice, check_places, check_same, check_sequences, check_shape, check_tensor
from cmi_fast.reference.rows import accumulation_type
from cmi_fast.reference.sequences import padded_rows, places

PARITIES = ("paper", "tf_original")


class SelfAttentivePooling(nn.Module):
    """ComiRec-SA's extractor: each interest has an attention of its own over the items.

    - **Softmax**: over the items of a sequence, padding excluded.
    - **Gradient**: through everything.
    - **Departures**: the original's second bias, one number an interest, drops out of the softmax and is left out.
      Padding has a weight of exactly zero, and an empty sequence gives zeros; the original's additive mask spreads an
      empty sequence's weights evenly over its padding.

    Args:
        interests: K.
        dim: d.
        hidden: h, of the attention's hidden layer; None: 4 d, as the original has it.
        max_length: P, places that have a learned position vector; None: no positions.
        bias: whether the hidden layer has one (the paper's has none, the original code's has).
        parity: where positions go. ``"tf_original"``: to the scores alone, as in the original code. ``"paper"``: items
            and positions are added first, so that the interests contain positions, too.
        backend: as in :func:`cmi_fast.functional.self_attentive_pool`.
    """

    def __init__(
        self,
        interests: int,
        dim: int,
        hidden: int | None = None,
        *,
        max_length: int | None = None,
        bias: bool = True,
        parity: str = "tf_original",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("parity", parity, PARITIES)
        hidden = 4 * dim if hidden is None else hidden
        self.weight = nn.Parameter(torch.empty(hidden, dim))
        self.queries = nn.Parameter(torch.empty(interests, hidden))
        self.bias = nn.Parameter(torch.empty(hidden)) if bias else None
        self.positions = nn.Parameter(torch.empty(max_length, dim)) if max_length else None
        self.parity = parity
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's uniform distribution, and a bias of zero, as TensorFlow's layers start."""
        for matrix in (self.weight, self.queries, self.positions):
            if matrix is not None:
                nn.init.xavier_uniform_(matrix)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, items: Tensor, lengths: Tensor | None = None, *, offsets: Tensor | None = None) -> Tensor:
        """Interests [B, K, d]. Raises ValueError where a sequence is longer than ``max_length``."""
        positions = self.positions
        if positions is not None and self.parity == "paper":
            check_places("max_length", len(positions), items, offsets)
            place = slice(items.shape[1]) if offsets is None else places(offsets, len(items))[1]
            items, positions = items + positions[place], None
        return functional.self_attentive_pool(
            items,
            self.weight,
            self.queries,
            lengths,
            bias=self.bias,
            positions=positions,
            offsets=offsets,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        (interests, hidden), dim = self.queries.shape, self.weight.shape[1]
        places = None if self.positions is None else len(self.positions)
        return f"interests={interests}, dim={dim}, hidden={hidden}, max_length={places}, parity={self.parity!r}"


class HardAssignmentPooling(nn.Module):
    """Octopus's extractor: every item goes to its best channel alone, and a channel is a weighted mean of its items.

    Channel j owns the items t with j = argmax of x_t . H_j, and pools them with weights softmax(x_t . H_j) over what it
    owns. A channel that owns no item is a row of zeros, so that the number of interests follows from the sequence.

    - **Softmax**: over the items of a channel.
    - **Gradient**: through items and weights; the choice of the channel is a constant.
    - **Departures**: the authors' code is not public; this follows the paper's text.

    Args:
        channels: M.
        dim: d.

    The parameter ``channels`` [M, d] starts orthonormal.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = nn.Parameter(torch.empty(channels, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.channels)

    def forward(self, items: Tensor, lengths: Tensor | None = None, *, offsets: Tensor | None = None) -> Tensor:
        """Channels [B, M, d], zeros where one owns no item."""
        _check_items(items, self.channels, lengths, offsets)
        rows, inside = padded_rows(items, lengths, offsets)
        with without_autocast(items.device):
            compute = accumulation_type(items.dtype)
            rows = rows.to(compute)
            scores = rows @ self.channels.to(compute).T  # [B, L, M]
            owned = F.one_hot(scores.argmax(-1), len(self.channels)).bool() & inside[..., None]
            weights = torch.softmax(scores.masked_fill(~owned, torch.finfo(compute).min), dim=1) * owned
            return (weights.transpose(1, 2) @ rows).to(items.dtype)

    def extra_repr(self) -> str:
        return "channels={}, dim={}".format(*self.channels.shape)


class IntentionClustering(nn.Module):
    """DSSRec's extractor: states of a sequence encoder, clustered by K prototypes and weighted by importance.

    With states z_t, all LN an affine layer norm, and position vectors alpha counted from a sequence's end,

        p_tk = softmax_k(LN(z_t) . LN(c_k) / sqrt(d)),      p_t = softmax_t(key_t . query / sqrt(d)),
        key_t = k_t + ReLU(W k_t + b), k_t = LN(z_t + alpha_t),      query = LN(b' + alpha_last + z_last),
        u_k = LN(beta_k + sum_t p_tk p_t z_t).

    - **Softmax**: p_tk over the interests, p_t over the items of a sequence.
    - **Gradient**: through everything.
    - **Departures**: padding has no importance; in the public code it has, and takes it from the items.

    Args:
        interests: K.
        dim: d.
        max_length: P, how many of the last places have a position vector of their own.

    An empty sequence gives LN(beta_k).
    """

    def __init__(self, interests: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.empty(interests, dim))
        self.positions = nn.Parameter(torch.zeros(max_length, dim))
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.offset = nn.Parameter(torch.empty(interests, dim))  # beta
        self.state_norm, self.prototype_norm, self.key_norm, self.query_norm, self.output_norm = (
            nn.LayerNorm(dim, eps=1e-12) for _ in range(5)
        )
        self.key = nn.Linear(dim, dim)
        for parameter in (self.prototypes, self.offset):
            nn.init.normal_(parameter, std=dim**-0.5)

    def forward(
        self,
        states: Tensor,
        lengths: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Interests [B, K, d] of ``states``; ``offset`` [K, d] in place of the layer's own beta."""
        _check_items(states, self.prototypes, lengths, offsets)
        check_places("max_length", len(self.positions), states, offsets)
        rows, inside = padded_rows(states, lengths, offsets)
        scale = rows.shape[-1] ** -0.5
        assignment = torch.softmax(scale * self.state_norm(rows) @ self.prototype_norm(self.prototypes).T, dim=-1)
        count = inside.sum(1)
        place = torch.arange(rows.shape[1], device=rows.device) - count[:, None]  # -1: the last
        keys = self.key_norm(rows + self.positions[place])
        keys = keys + F.relu(self.key(keys))
        last = rows[torch.arange(len(rows), device=rows.device), (count - 1).clamp_min(0)] if rows.shape[1] else 0
        query = self.query_norm(self.query_bias + self.positions[-1] + last)
        scores = scale * (keys * query[..., None, :]).sum(-1)
        importance = torch.softmax(scores.masked_fill(~inside, torch.finfo(scores.dtype).min), dim=1) * inside
        pooled = (assignment * importance[..., None]).transpose(1, 2) @ rows
        return self.output_norm((self.offset if offset is None else offset) + pooled)

    def extra_repr(self) -> str:
        (interests, dim), places = self.prototypes.shape, len(self.positions)
        return f"interests={interests}, dim={dim}, max_length={places}"


def _check_items(items: Tensor, parameter: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> None:
    check_tensor("items", items, "[T, d]" if offsets is not None else "[B, L, d]")
    check_shape("items", items, (*items.shape[:-1], parameter.shape[-1]), "d as the layer's dim")
    check_same("items", items, lengths=lengths, offsets=offsets)
    check_sequences("items", items, lengths, offsets)
