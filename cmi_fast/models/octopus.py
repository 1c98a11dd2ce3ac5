"""Octopus: comprehensive and elastic user representation (SIGIR 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmi_fast.models.base import MultiInterestModel, repeat_first
from cmi_fast.nn import HardAssignmentPooling


class Losses(NamedTuple):
    """The objective and its parts, unweighted."""

    total: Tensor
    main: Tensor
    orthogonality: Tensor
    reconstruction: Tensor


class Octopus(MultiInterestModel):
    """M channels, of which a user has those that own an item of the history; trained on the one closest to the label.

    The authors' code is not public, and the choice of a channel has no gradient. What trains the channels, beside the
    attention within each, are two terms whose weights the sources name but do not explain: orthonormality,
    ||H H' - I||^2, and how well the channels span the batch's items, the mean of ||e - e H' H||^2 with e constant.

    Args:
        num_items, dim, frequency: as in :class:`MultiInterestModel`.
        interests: M.
        orthogonality_weight, reconstruction_weight: of the two terms.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 8,
        dim: int = 64,
        orthogonality_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        frequency: Tensor | None = None,
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.reset_items()
        self.extractor = HardAssignmentPooling(interests, dim)
        self.orthogonality_weight = orthogonality_weight
        self.reconstruction_weight = reconstruction_weight

    def channels(self, history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Interests [B, M, d], and which of them a user has, bool [B, M]."""
        interests: Tensor = self.extractor(self.item_vectors(history), lengths)
        return interests, interests.detach().any(-1)

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        return repeat_first(*self.channels(history, lengths))

    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> Losses:
        interests, active = self.channels(history, lengths)
        main = self.closest_interest_loss(interests, positives, negatives, active)
        heads = self.extractor.channels
        orthogonality = (heads @ heads.T - torch.eye(len(heads), device=heads.device)).square().sum()
        items = self.item_vectors(positives).detach()
        reconstruction = (items - items @ heads.T @ heads).square().sum(-1).mean()
        total = main + self.orthogonality_weight * orthogonality + self.reconstruction_weight * reconstruction
        return Losses(total, main, orthogonality, reconstruction)
