"""CMI as the authors' code trains it, where that departs from the paper's text."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.functional import interest_softmax_loss, nt_xent_loss
from cmi_fast.models.cmi import CMI
from cmi_fast.nn import GRU


class Losses(NamedTuple):
    """The objective and its parts, unweighted."""

    total: Tensor
    main: Tensor
    contrastive: Tensor
    orthogonality: Tensor
    balance: Tensor


class AuthorsCMI(CMI):
    """What the authors' code does and the text does not say:

    - item and category tables are projected onto unit norm before every step; no gradient goes through a norm;
    - the general interest is a GRU without biases, then a linear layer and ReLU, at unit norm;
    - an interest is the unit vector of its pooled items plus the general interest, also at unit norm: items are scored
      by the largest cosine over the temperature, and contrasted are these sums;
    - the two views, not the history, feed the main loss; a view's candidates are its positive and all sampled
      negatives, which both views share: no other user's positive, and every negative counts twice;
    - contrastive negatives are those of the other view;
    - orthogonality is ||G G' - I||^2 / m^2;
    - a term balances the load: over interests, the standard deviation of the mean assignment divided by its mean.

    Their views are the halves of a random split (``disjoint_views``), their Adam decays weights by 1e-4, their positive
    is any later play: these are the trainer's and the sampler's, not the model's.

    Args:
        balance_weight: of the last term.
        Others as in :class:`CMI`; there is no logQ.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 8,
        dim: int = 64,
        temperature: float = 0.1,
        contrastive_weight: float = 0.01,
        contrastive_temperature: float = 0.1,
        orthogonality_weight: float = 10.0,
        balance_weight: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_items,
            interests=interests,
            dim=dim,
            temperature=temperature,
            general_interest=False,
            contrastive_weight=contrastive_weight,
            contrastive_temperature=contrastive_temperature,
            orthogonality_weight=orthogonality_weight,
            backend=backend,
        )
        self.general_gru = GRU(dim, dim, bias=False, backend=backend)
        self.general_layer = nn.Linear(dim, dim)
        self.balance_weight = balance_weight
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    @torch.no_grad()
    def project(self) -> None:
        """Scale the rows of both tables to unit norm, in place."""
        for table in (self.items, self.categories):
            table.copy_(F.normalize(table, dim=-1))

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        items = F.normalize(F.embedding(history, self.items), dim=-1)
        return self._interests(items, lengths, F.normalize(self.categories, dim=-1))[0] / self.temperature

    def loss(  # type: ignore[override]  # one part more
        self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor
    ) -> Losses:
        rows, counts = compact(
            history, views & (torch.arange(history.shape[1], device=history.device) < lengths[:, None])
        )
        interests, assignment = self._interests(F.embedding(rows, self.items), counts, self.categories)
        first, second = interests.chunk(2)
        batch = len(positives)
        own = torch.arange(batch, device=rows.device)
        others = own != own[:, None]
        twice = torch.cat([torch.zeros(batch), torch.full((batch,), math.log(2))]).to(interests)
        main = interest_softmax_loss(
            interests,
            F.embedding(torch.cat([positives, negatives]), self.items),
            own.repeat(2),
            temperature=self.temperature,
            candidate_bias=twice,
            exclude=torch.cat([others, torch.zeros_like(others)], 1).repeat(2, 1),
            backend=self.backend,
        )
        contrastive = 2 * nt_xent_loss(
            first,
            second,
            temperature=self.contrastive_temperature,
            negatives="cross_view",
            backend=self.backend,
        )
        m = len(self.categories)
        gram = self.categories @ self.categories.T
        orthogonality = (gram - torch.eye(m, device=gram.device)).square().sum() / m**2
        load = assignment.sum((0, 1)) / counts.sum()
        balance = load.std() / load.mean() if m > 1 else load.new_zeros(())  # one load has no deviation
        total = (
            main
            + self.contrastive_weight * contrastive
            + self.orthogonality_weight * orthogonality
            + self.balance_weight * balance
        )
        return Losses(total, main, contrastive, orthogonality, balance)

    def _interests(self, items: Tensor, lengths: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Unit interests [B, m, d] of unit ``items`` [B, L, d], and the assignment [B, L, m], zero in the padding."""
        inside = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        assignment = torch.softmax(items @ categories.T / self.temperature, dim=-1) * inside[..., None]
        pooled = F.normalize(assignment.transpose(1, 2) @ items, dim=-1)
        general = F.normalize(F.relu(self.general_layer(self.general_gru(items, lengths))), dim=-1)
        return F.normalize(pooled + general[:, None], dim=-1), assignment


def compact(history: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    """The items of ``history`` [B, L] in each of ``views`` [V, B, L], order kept: [V B, L] and their number [V B]."""
    order = (~views).int().argsort(dim=-1, stable=True)
    rows = history.expand_as(views).gather(-1, order)
    return rows.flatten(0, 1), views.sum(-1).flatten()
