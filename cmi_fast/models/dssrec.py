"""DSSRec: disentangled self-supervision in sequential recommenders (KDD 2020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmi_fast.functional import nt_xent_loss
from cmi_fast.models.base import MultiInterestModel
from cmi_fast.models.sasrec import SASRecEncoder, group
from cmi_fast.nn import IntentionClustering


class Losses(NamedTuple):
    """The objective and its parts."""

    total: Tensor
    item: Tensor
    sequence: Tensor


class DSSRec(MultiInterestModel):
    """K intentions clustered from a SASRec encoder's states, predicting the next item and the rest of the sequence.

    A sample is a history and its next item, cut at a random place: the items before it are the input, the first item
    after it is the next one, and all items after it, in reversed order, are the label sequence. With intentions phi of
    the input and psi of the label sequence,

    - next item: -log(max_k exp(phi_k . h / sqrt(d)) / sum over k and the batch's candidates);
    - sequence: each phi_bk must tell psi_bk from the batch's other psi; of these B K losses the ``keep_share``
      smallest, floored, count, as the others may ask for what the future does not hold.

    Both are sums divided by B. Departures from the public code: natural logarithms; sampled negatives and logQ join the
    candidates, as in every model here; no second stage that fine-tunes SASRec's own loss, which would leave the
    intentions unused in retrieval.

    Args:
        num_items, dim, frequency: as in :class:`MultiInterestModel`.
        interests: K.
        max_history: P, the longest history.
        keep_share: lambda.
        layers, dropout: of the encoder.
        backend: as in :func:`cmi_fast.functional.nt_xent_loss`.
    """

    def __init__(
        self,
        num_items: int,
        *,
        interests: int = 4,
        dim: int = 64,
        max_history: int = 100,
        keep_share: float = 0.5,
        layers: int = 2,
        dropout: float = 0.5,
        frequency: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_items, dim, frequency)
        self.reset_items()
        self.encoder = SASRecEncoder(dim, max_history, layers, dropout)
        self.clustering = IntentionClustering(interests, dim, max_history)
        self.label_offset = nn.Parameter(torch.empty(interests, dim).normal_(std=dim**-0.5))
        self.keep_share = keep_share
        self.backend = backend
        self.scale = dim**-0.5

    def intentions(self, history: Tensor, lengths: Tensor, offset: Tensor | None = None) -> Tensor:
        """[B, K, d]. Sequences of about one length go together: most of a batch's work would be padding."""
        order = lengths.argsort(stable=True)
        groups = group(lengths[order])
        inside = torch.arange(history.shape[1], device=lengths.device) < lengths[order][:, None]
        states = self.encoder(self.item_vectors(history[order][inside]), groups)
        parts = states.split([len(some.filled) for some in groups])
        found = [
            self.clustering(some.pad(rows), some.lengths, offset=offset)
            for some, rows in zip(groups, parts, strict=True)
        ]
        return torch.cat(found)[order.argsort()]

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        return self.intentions(history, lengths) * self.scale

    def loss(self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor) -> Losses:
        cuts = (torch.rand(len(lengths), device=lengths.device) * lengths).long() + 1  # in [1, length]
        next_items, labels, label_lengths = split(history, lengths, positives, cuts)
        inputs = self.intentions(history, cuts)
        item = self.next_item_loss(inputs, torch.cat([next_items, negatives]))
        sequence = self.sequence_loss(inputs, self.intentions(labels, label_lengths, self.label_offset))
        return Losses(item + sequence, item, sequence)

    def next_item_loss(self, intentions: Tensor, candidates: Tensor) -> Tensor:
        """The first B of ``candidates`` [C] are the next items; the same item once more is no rival."""
        batch = len(intentions)
        scores = self.scale * intentions @ self.item_vectors(candidates).T  # [B, K, C]
        if self.candidate_bias is not None:
            scores = scores + self.candidate_bias[candidates]
        row = torch.arange(batch, device=candidates.device)
        same = candidates == candidates[:batch, None]
        same[row, row] = False
        every = scores.masked_fill(same[:, None], -torch.inf).flatten(1).logsumexp(1)
        return (every - scores[row, :, row].amax(1)).mean()

    def sequence_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Of intentions ``inputs`` and ``labels`` [B, K, d] of the two parts."""
        losses = nt_xent_loss(
            inputs,
            labels,
            temperature=1 / self.scale,
            negatives="cross_view",
            direction="first",
            normalize=False,
            reduction="none",
            backend=self.backend,
        )
        kept = int(self.keep_share * len(losses))
        return losses.topk(kept, largest=False).values.sum() / len(inputs)


def split(history: Tensor, lengths: Tensor, positives: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences (``history`` [B, L], then ``positives`` [B]) cut after ``cuts`` [B] items, from 1 to the length.

    Returns the first item after each cut [B], and all items after it in reversed order: [B, L] and their number [B].
    """
    column = torch.arange(history.shape[1], device=history.device)
    source = lengths[:, None] - column  # of a label sequence's columns: the place in the sequence, from its end
    after = source >= cuts[:, None]
    sequence = torch.cat([history, positives[:, None]], 1)
    sequence[torch.arange(len(lengths), device=history.device), lengths] = positives
    labels = torch.where(after, sequence.gather(1, source.clamp_min(0)), 0)
    return sequence.gather(1, cuts[:, None])[:, 0], labels, lengths + 1 - cuts
