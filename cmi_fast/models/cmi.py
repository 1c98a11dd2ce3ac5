"""CMI: contrastive multi-interest recommendation for micro-video (SIGIR 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    orthogonality_loss,
)
from cmi_fast.nn import GRU


class Losses(NamedTuple):
    """The objective and its parts, unweighted (Eq. 4, 6, 7, 8)."""

    total: Tensor
    main: Tensor
    contrastive: Tensor
    orthogonality: Tensor


class CMI(nn.Module):
    """m interests by soft assignment to learned categories, plus a general interest from a GRU.

    Where the paper is silent or its own code departs from it, ``docs/model.md`` says what is done here and why.

    Args:
        num_items: V, rows of the item table.
        interests: m.
        dim: d.
        temperature: epsilon, of the assignment (Eq. 2) and of the interests' scores (Eq. 7).
        general_interest: add the GRU's vector to the score; False is the paper's CMI-G.
        contrastive_weight: lambda_cl; 0 leaves the contrastive loss out (the paper's CMI-CL).
        contrastive_temperature: tau of Eq. 6.
        orthogonality_weight: lambda_orth of Eq. 4.
        frequency: [V], how often each item is a candidate, up to a factor: its logarithm is taken from the scores in
            training (logQ), as a candidate drawn often would otherwise learn to score low. None: no correction.
        backend: of all operators, as in :mod:`cmi_fast.functional`.
    """

    candidate_bias: Tensor | None

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 8,
        dim: int = 64,
        temperature: float = 0.1,
        general_interest: bool = True,
        contrastive_weight: float = 0.01,
        contrastive_temperature: float = 0.1,
        orthogonality_weight: float = 10.0,
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.empty(num_items, dim))
        self.categories = nn.Parameter(torch.empty(interests, dim))
        gru_backend = "auto" if backend in ("triton", "cuda") else backend  # on a GPU the GRU is cuDNN's
        self.gru = GRU(dim, dim, backend=gru_backend) if general_interest else None
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        self.contrastive_temperature = contrastive_temperature
        self.orthogonality_weight = orthogonality_weight
        self.backend = backend
        bias = None if frequency is None else -frequency.log()
        self.register_buffer("candidate_bias", bias, persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def pool(
        self, history: Tensor, lengths: Tensor, views: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """Unit interests [B, m, d] of ``history`` [B, L] (rows of ``table``, None: of the item table), or [V, B, m, d]
        of its ``views`` [V, B, L]."""
        pooled = item_soft_assignment_pool(
            history,
            self.items if table is None else table,
            self.categories,
            lengths,
            temperature=self.temperature,
            views=views,
            backend=self.backend,
        )
        return F.normalize(pooled, dim=-1)

    def general(self, history: Tensor, lengths: Tensor, table: Tensor | None = None) -> Tensor | None:
        """The general interest u_g [B, d], None without a GRU."""
        if self.gru is None:
            return None
        general: Tensor = self.gru(self.item_vectors(history, table), lengths)
        return general

    def item_vectors(self, rows: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """Unit item vectors: [*rows.shape, d], all V without ``rows``, which may count in another ``table``."""
        table = self.items if table is None else table
        return F.normalize(table if rows is None else F.embedding(rows, table), dim=-1)

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Retrieval vectors [B, m, d]: the score of item v is the largest inner product with its unit vector.

        max_k(u_k . v / epsilon) + u_g . v = max_k((u_k / epsilon + u_g) . v), so one vector an interest suffices.
        """
        vectors = self.pool(history, lengths) / self.temperature
        general = self.general(history, lengths)
        return vectors if general is None else vectors + general[:, None]

    def loss(
        self,
        history: Tensor,
        lengths: Tensor,
        views: Tensor,
        positives: Tensor,
        negatives: Tensor,
        rows: Tensor | None = None,
        *,
        sparse_grad: bool = False,
    ) -> Losses:
        """The objective (Eq. 8) of a batch: ``history`` [B, L], ``views`` bool [2, B, L], items [B] and [B].

        With ``rows`` [R], distinct, all items are places in it: only these rows of the item table are read, and its
        gradient is built once, as a sparse tensor that holds no other row with ``sparse_grad``.
        """
        everything = torch.ones_like(views[:1])
        table = self.items if rows is None else F.embedding(rows, self.items, sparse=sparse_grad)
        full, first, second = self.pool(history, lengths, torch.cat([everything, views]), table)
        candidates = torch.cat([positives, negatives])
        main = interest_softmax_loss(
            full,
            self.item_vectors(candidates, table),
            torch.arange(len(positives), device=candidates.device),
            self.general(history, lengths, table),
            temperature=self.temperature,
            candidate_bias=self._bias(candidates if rows is None else rows[candidates]),
            candidate_ids=candidates,
            backend=self.backend,
        )
        orthogonality = orthogonality_loss(self.categories)
        total = main + self.orthogonality_weight * orthogonality
        if not self.contrastive_weight:
            return Losses(total, main, main.new_zeros(()), orthogonality)
        # The paper averages over pairs, nt_xent_loss over their two anchors.
        contrastive = 2 * nt_xent_loss(first, second, temperature=self.contrastive_temperature, backend=self.backend)
        return Losses(total + self.contrastive_weight * contrastive, main, contrastive, orthogonality)

    def _bias(self, items: Tensor) -> Tensor | None:
        return None if self.candidate_bias is None else self.candidate_bias[items]

    @torch.no_grad()
    def assigned_categories(self) -> Tensor:
        """The category of each item, [V]: the one its vector is closest to."""
        return (self.item_vectors() @ F.normalize(self.categories, dim=-1).T).argmax(-1)
