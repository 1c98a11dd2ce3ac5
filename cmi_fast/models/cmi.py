"""CMI: contrastive multi-interest recommendation for micro-video (SIGIR 2022)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    orthogonality_loss,
)
from cmi_fast.models.base import MultiInterestModel
from cmi_fast.nn import GRU


class Losses(NamedTuple):
    """The objective and its parts, unweighted (Eq. 4, 6, 7, 8)."""

    total: Tensor
    main: Tensor
    contrastive: Tensor
    orthogonality: Tensor


class CMI(MultiInterestModel):
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
        unit_interests: bring the pooled interests to unit norm, which the text does not say.
        general_in_retrieval: rank by the score that is trained; False: by the cosine with the interests alone.
        share_weight: times the log of the share of the history in each category is added to its interest's score, as
            unit interests forget how many plays they hold. 0: not added.
        assignment_temperature: of the assignment alone; None: ``temperature``.
        first_assignment_temperature: what it is in the first step; it falls (or rises) by the same factor in every step
            until it has reached ``assignment_temperature`` after ``annealing_steps``. None: constant.
        frequency: [V], how often each item is a candidate, up to a factor: its logarithm is taken from the scores in
            training (logQ), as a candidate drawn often would otherwise learn to score low. None: no correction.
        backend: of all operators, as in :mod:`cmi_fast.functional`.
    """

    assignment_temperature: float | Tensor

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
        unit_interests: bool = True,
        general_in_retrieval: bool = True,
        share_weight: float = 0.0,
        assignment_temperature: float | None = None,
        first_assignment_temperature: float | None = None,
        annealing_steps: int = 1000,
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.categories = nn.Parameter(torch.empty(interests, dim))
        gru_backend = "auto" if backend in ("triton", "cuda") else backend  # on a GPU the GRU is cuDNN's
        self.gru = GRU(dim, dim, backend=gru_backend) if general_interest else None
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        self.contrastive_temperature = contrastive_temperature
        self.orthogonality_weight = orthogonality_weight
        self.unit_interests = unit_interests
        self.general_in_retrieval = general_in_retrieval
        self.share_weight = share_weight
        self.last_assignment_temperature = temperature if assignment_temperature is None else assignment_temperature
        self.first_assignment_temperature = first_assignment_temperature
        self.annealing_steps = annealing_steps
        if first_assignment_temperature is None:
            self.assignment_temperature = self.last_assignment_temperature
        else:  # kept with the weights, which belong to it
            self.register_buffer("assignment_temperature", torch.tensor(first_assignment_temperature))
        self.backend = backend
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    @classmethod
    def authors(cls, num_items: int, **options: Any) -> CMI:
        """The model that the authors' code trains, where it departs from their text: :class:`AuthorsCMI`."""
        from cmi_fast.models.cmi_authors import AuthorsCMI  # a subclass

        return AuthorsCMI(num_items, **options)

    @torch.no_grad()
    def begin_step(self, steps_done: int) -> None:
        """Set the assignment's temperature."""
        first, last = self.first_assignment_temperature, self.last_assignment_temperature
        if first is not None:
            assert isinstance(self.assignment_temperature, Tensor)
            self.assignment_temperature.fill_(first * (last / first) ** min(1.0, steps_done / self.annealing_steps))

    def pool(self, history: Tensor, lengths: Tensor, views: Tensor | None = None) -> Tensor:
        """Interests [B, m, d] of ``history`` [B, L] (item rows), or [V, B, m, d] of its ``views`` [V, B, L]."""
        return item_soft_assignment_pool(
            history,
            self.items,
            self.categories,
            lengths,
            temperature=self.assignment_temperature,
            views=views,
            backend=self.backend,
        )

    def _scored(self, pooled: Tensor) -> Tensor:
        """The interests that items are scored by."""
        return F.normalize(pooled, dim=-1) if self.unit_interests else pooled

    def shares(self, history: Tensor, lengths: Tensor) -> Tensor:
        """The share of ``history`` [B, L] in each category, [B, m]: the mean of its items' assignments."""
        categories = F.normalize(self.categories, dim=-1)
        # Of each item once: in training the table holds the distinct items of the batch alone.
        assignment = torch.softmax(self.unit_items() @ categories.T / self.assignment_temperature, dim=-1)
        inside = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
        total = (F.embedding(history, assignment) * inside[..., None]).sum(1)
        return total / lengths.clamp(min=1)[:, None]

    def with_shares(self, interests: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """``interests`` [B, m, d] with epsilon times the share term as coordinate d + 1, where item vectors have a 1
        and u_g a 0: so what takes inner products takes the share term, too. Without the term unchanged."""
        if not self.share_weight:
            return interests
        shares = self.shares(history, lengths)
        term = self.share_weight * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
        return torch.cat([interests, self.temperature * term[..., None]], dim=-1)

    def general(self, history: Tensor, lengths: Tensor) -> Tensor | None:
        """The general interest u_g [B, d], None without a GRU; with the share term [B, d + 1]."""
        if self.gru is None:
            return None
        general = self.gru.from_ids(history, self.items, lengths, normalize=True)
        return F.pad(general, (0, 1)) if self.share_weight else general

    def unit_items(self, rows: Tensor | None = None) -> Tensor:
        """Unit vectors of items: [*rows.shape, d], all V without ``rows``."""
        return F.normalize(self.items if rows is None else F.embedding(rows, self.items), dim=-1)

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """What items are ranked by: :meth:`unit_items`, with the share term [..., d + 1], the last coordinate 1."""
        unit = self.unit_items(rows)
        return F.pad(unit, (0, 1), value=1.0) if self.share_weight else unit

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Retrieval vectors [B, m, d], with the share term d + 1: the score of item v is the largest inner product with
        its row of :meth:`item_vectors`.

        max_k(u_k . v / epsilon) + u_g . v = max_k((u_k / epsilon + u_g) . v), so one vector an interest suffices.
        """
        pooled = self.pool(history, lengths)
        if not self.general_in_retrieval:
            return self.with_shares(F.normalize(pooled, dim=-1), history, lengths)
        vectors = self.with_shares(self._scored(pooled), history, lengths) / self.temperature
        general = self.general(history, lengths)
        return vectors if general is None else vectors + general[:, None]

    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> Losses:
        """The objective (Eq. 8) of a batch: ``history`` [B, L], ``views`` bool [2, B, L], items [B] and [B]."""
        everything = torch.ones_like(views[:1])
        full, first, second = self.pool(history, lengths, torch.cat([everything, views]))
        candidates = torch.cat([positives, negatives])
        main = interest_softmax_loss(
            self.with_shares(self._scored(full), history, lengths),
            self.item_vectors(candidates),
            torch.arange(len(positives), device=candidates.device),
            self.general(history, lengths),
            temperature=self.temperature,
            candidate_bias=None if self.candidate_bias is None else self.candidate_bias[candidates],
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

    @torch.no_grad()
    def assigned_categories(self) -> Tensor:
        """The category of each item, [V]: the one its vector is closest to."""
        return (self.unit_items() @ F.normalize(self.categories, dim=-1).T).argmax(-1)
