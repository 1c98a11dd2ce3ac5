"""MIND: multi-interest network with dynamic routing (CIKM 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmi_fast.models.base import MainLoss, MultiInterestModel, repeat_first
from cmi_fast.nn import CapsuleRouting, LabelAwareAttention


class MIND(MultiInterestModel):
    """Capsules by routing with one shared map, a ReLU layer on each, and label-aware attention in training.

    The paper's layer also sees a user's profile; a log of plays has none.

    Args:
        num_items, dim, frequency: as in :class:`MultiInterestModel`.
        interests: K, the most interests of a user.
        max_history: P, the longest history.
        power: of the label-aware attention; inf takes the interest closest to the label.
        dynamic: a user with n plays has max(1, min(K, floor(log2 n))) interests.
        parity, seed, backend: as in :class:`cmi_fast.nn.CapsuleRouting`.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 4,
        dim: int = 64,
        max_history: int = 100,
        power: float = math.inf,
        dynamic: bool = True,
        parity: str = "paper",
        seed: int = 0,
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.reset_items()
        self.extractor = CapsuleRouting(
            interests, dim, max_length=max_history, dynamic=dynamic, parity=parity, seed=seed, backend=backend
        )
        self.layer = nn.Linear(dim, dim)
        self.attention = LabelAwareAttention(power)

    def interests(self, history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Interests [B, K, d], and which of them a user has, bool [B, K]."""
        capsules: Tensor = self.extractor(self.item_vectors(history), lengths)
        return torch.relu(self.layer(capsules)), self.extractor.takes_part(lengths)

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        return repeat_first(*self.interests(history, lengths))

    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> MainLoss:
        candidates = torch.cat([positives, negatives])
        vectors = self.item_vectors(candidates)
        interests, active = self.interests(history, lengths)
        users = self.attention(interests, vectors[: len(positives)], active)
        return MainLoss(self.softmax_among_candidates(users, candidates, vectors))
