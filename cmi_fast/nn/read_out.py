"""From K interests and an item to one user vector, and the loss of such vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmi_fast import functional
from cmi_fast.ops.checks import check_shape, check_tensor


def hard_read_out(interests: Tensor, labels: Tensor, active: Tensor | None = None) -> Tensor:
    """The interest [B, d] of ``interests`` [B, K, d] with the largest inner product with ``labels`` [B, d].

    The first of equally good ones. The choice is a constant to the gradient. ``active``, bool [B, K]: only among these.
    """
    scores = _scores(interests, labels).detach()
    if active is not None:
        scores = scores.masked_fill(~active, -math.inf)
    best = scores.argmax(1)
    return interests[torch.arange(len(interests), device=interests.device), best]


class LabelAwareAttention(nn.Module):
    """MIND's label-aware attention: interests weighted by softmax_k((u_k . e)^p) for the label e.

    - **Softmax**: over the interests.
    - **Gradient**: through weights and interests; with ``power=inf`` through the chosen interest.
    - **Departures**: the power keeps its sign, sign(s) |s|^p, which is the paper's for odd p; its even powers would
      rank a score of -2 above one of 1, and its fractional ones would be NaN there. Large powers overflow in float32
      (s^100 beyond s = 2.4): take ``inf``.

    Args:
        power: p >= 0; 0 is the mean, ``inf`` the best interest (:func:`hard_read_out`).
    """

    def __init__(self, power: float = math.inf) -> None:
        super().__init__()
        if not power >= 0:
            raise ValueError(f"power: expected a number of at least 0, found {power}")
        self.power = power

    def forward(self, interests: Tensor, labels: Tensor, active: Tensor | None = None) -> Tensor:
        """User vectors [B, d] of ``interests`` [B, K, d] for ``labels`` [B, d]; ``active`` as in hard_read_out."""
        if math.isinf(self.power):
            return hard_read_out(interests, labels, active)
        scores = _scores(interests, labels)
        # At 0 the slope of |s|^p is infinite for p < 1: the power is taken of no zero.
        powers = scores.abs().clamp_min(torch.finfo(scores.dtype).tiny) ** self.power
        scores = powers if self.power == 0 else scores.sign() * powers
        if active is not None:
            scores = scores.masked_fill(~active, -math.inf)
        return (torch.softmax(scores, 1)[..., None] * interests).sum(1)

    def extra_repr(self) -> str:
        return f"power={self.power}"


class SampledSoftmaxLoss(nn.Module):
    """Cross-entropy of a user vector over sampled candidates, corrected for how they were sampled (logQ).

    From each candidate's score u . e the logarithm of ``frequency``, how often it is expected among the candidates, is
    subtracted, so that frequent candidates do not learn to score low. TensorFlow's ``sampled_softmax_loss`` does the
    same; PyTorch has none.

    Args:
        reduction, backend: as in :func:`cmi_fast.functional.interest_softmax_loss`.
    """

    def __init__(self, *, reduction: str = "mean", backend: str = "auto") -> None:
        super().__init__()
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        users: Tensor,
        candidates: Tensor,
        targets: Tensor,
        *,
        frequency: Tensor | None = None,
        candidate_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of users [B, d] whose positives are the rows ``targets`` [B] of candidates [C, d].

        ``frequency`` [C], positive, up to a factor; None: no correction. ``candidate_ids`` [C]: a candidate that is the
        target once more is no negative (an accidental hit).
        """
        check_tensor("users", users, "[B, d]")
        return functional.interest_softmax_loss(
            users[:, None],
            candidates,
            targets,
            temperature=1.0,
            candidate_bias=None if frequency is None else -frequency.log(),
            candidate_ids=candidate_ids,
            reduction=self.reduction,
            backend=self.backend,
        )


def _scores(interests: Tensor, labels: Tensor) -> Tensor:
    """Inner products [B, K]."""
    check_tensor("interests", interests, "[B, K, d]")
    check_tensor("labels", labels, "[B, d]")
    check_shape("labels", labels, (interests.shape[0], interests.shape[2]), "[B, d], as interests")
    return (interests * labels[:, None]).sum(-1)
