"""ComiRec: controllable multi-interest recommendation (KDD 2020), with self-attention (SA) or dynamic routing (DR)."""

from __future__ import annotations

from torch import Tensor

from cmi_fast.models.base import MainLoss, MultiInterestModel
from cmi_fast.nn import CapsuleRouting, SelfAttentivePooling


class ComiRec(MultiInterestModel):
    """An extractor of interests and a sampled softmax on the one closest to the next item."""

    extractor: CapsuleRouting | SelfAttentivePooling

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        interests: Tensor = self.extractor(self.item_vectors(history), lengths)
        return interests

    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> MainLoss:
        return MainLoss(self.closest_interest_loss(self(history, lengths), positives, negatives))


class ComiRecSA(ComiRec):
    """ComiRec with one attention an interest, and learned positions.

    Args:
        num_items, dim, frequency: as in :class:`MultiInterestModel`.
        interests: K.
        max_history: P, the longest history.
        parity, backend: as in :class:`cmi_fast.nn.SelfAttentivePooling`.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 4,
        dim: int = 64,
        max_history: int = 100,
        parity: str = "tf_original",
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.reset_items()
        self.extractor = SelfAttentivePooling(interests, dim, max_length=max_history, parity=parity, backend=backend)


class ComiRecDR(ComiRec):
    """ComiRec with a map for each place and interest, and routing from logits of zero.

    Args:
        num_items, dim, frequency: as in :class:`MultiInterestModel`.
        interests: K.
        max_history: P, the longest history.
        parity, backend: as in :class:`cmi_fast.nn.CapsuleRouting`.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 4,
        dim: int = 64,
        max_history: int = 100,
        parity: str = "paper",
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.reset_items()
        self.extractor = CapsuleRouting(
            interests, dim, maps="position", max_length=max_history, parity=parity, backend=backend
        )
