"""What training, evaluation and recommending ask of every model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.functional import interest_softmax_loss
from cmi_fast.nn import hard_read_out


class MainLoss(NamedTuple):
    """The objective of a model whose loss has one part."""

    total: Tensor


class MultiInterestModel(nn.Module, ABC):
    """K interests from a history of items; the score of an item is its largest inner product with one of them.

    Args:
        num_items: V, rows of the item table ``items`` [V, dim].
        dim: d.
        frequency: [V], how often each item is a candidate, up to a factor: its logarithm is taken from the scores in
            training (logQ), as a candidate drawn often would otherwise learn to score low. None: no correction.

    A model is what ``forward`` and ``loss`` say; the rest follows from them.
    """

    candidate_bias: Tensor | None

    def __init__(self, num_items: int, dim: int, frequency: Tensor | None) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.empty(num_items, dim))
        bias = None if frequency is None else -frequency.log()
        self.register_buffer("candidate_bias", bias, persistent=False)

    def item_vectors(self, rows: Tensor | None = None) -> Tensor:
        """The vectors that items are ranked by: [*rows.shape, d], all V without ``rows``."""
        return self.items if rows is None else F.embedding(rows, self.items)

    @abstractmethod
    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Retrieval vectors [B, K, d] of ``history`` [B, L] (item rows) with ``lengths`` [B]."""

    @abstractmethod
    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> Any:
        """A named tuple of scalars, the objective ``total`` first: ``history`` [B, L], ``lengths`` [B], two views of
        the histories, bool [2, B, L], the next items ``positives`` [B] and ``negatives`` [B]."""

    def begin_step(self, steps_done: int) -> None:
        """Called before every step of training with the number of those before it: set what changes by plan. It must
        depend on that number alone, as a resumed training knows no more."""

    def project(self) -> None:
        """Called before every step of training: bring the weights back to where the model wants them."""

    def reset_items(self) -> None:
        """Start the item table uniform in +-1/sqrt(d), as CMI's."""
        bound = self.items.shape[1] ** -0.5
        nn.init.uniform_(self.items, -bound, bound)

    def softmax_among_candidates(self, users: Tensor, candidates: Tensor, vectors: Tensor) -> Tensor:
        """Cross-entropy of users [B, d] over ``candidates`` [C] with ``vectors`` [C, d], the first B the targets."""
        return interest_softmax_loss(
            users[:, None],
            vectors,
            torch.arange(len(users), device=candidates.device),
            temperature=1.0,
            candidate_bias=None if self.candidate_bias is None else self.candidate_bias[candidates],
            candidate_ids=candidates,
        )

    def closest_interest_loss(
        self, interests: Tensor, positives: Tensor, negatives: Tensor, active: Tensor | None = None
    ) -> Tensor:
        """That of the interest [B, K, d] closest to the positive, among all 2B candidates of the batch: the objective
        of ComiRec and Octopus. ``active`` bool [B, K]: only among these."""
        candidates = torch.cat([positives, negatives])
        vectors = self.item_vectors(candidates)
        users = hard_read_out(interests, vectors[: len(positives)], active)
        return self.softmax_among_candidates(users, candidates, vectors)


def repeat_first(interests: Tensor, active: Tensor) -> Tensor:
    """``interests`` [B, K, d] with the first active one in place of every inactive one (``active`` bool [B, K]).

    A row of zeros would score 0 with every item, above what an active interest scores below 0.
    """
    first = interests[torch.arange(len(interests), device=interests.device), active.int().argmax(1)]
    return torch.where(active[..., None], interests, first[:, None])
