"""Recall, HitRate, NDCG and MRR at K of ranked lists, and the share of the catalogue that they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories

CUTOFFS = (10, 20, 50)


def ranking_metrics(
    ranked: NDArray[np.integer], targets: Histories, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """``{"recall@10": ..., "hitrate@10": ..., ...}``, the means over users of :func:`user_metrics`."""
    return {name: float(np.mean(values)) for name, values in user_metrics(ranked, targets, cutoffs).items()}


def user_metrics(
    ranked: NDArray[np.integer], targets: Histories, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, NDArray[np.float64]]:
    """``{"recall@10": [E], "hitrate@10": [E], ...}``, each user's, in [0, 1].

    Recall@K is the share of a user's targets among the first K of the list, HitRate@K whether any is. NDCG@K sums
    1 / log2(1 + rank) over the hits among the first K, divided by that sum for the best possible list (the first
    min(K, number of targets) ranks); MRR@K is 1 / rank of the first hit, 0 where there is none among the first K.
    A target that no list can hold (a cold item, an item seen before) is a miss like any other.

    Args:
        ranked: [E, n] item rows, best first, distinct within a list; -1 where a list has ended.
        targets: E lists of distinct item rows, none of them empty.
        cutoffs: the values of K, each from 1 to n.

    Raises:
        ValueError: an argument of wrong shape or range, a repeated item, a user without targets.
    """
    _check(ranked, targets, cutoffs)
    num_items = int(max(ranked.max(initial=0), targets.items.max(initial=0))) + 1
    users = np.arange(len(ranked))[:, None]
    target_pairs = targets.users * num_items + targets.items
    hits = np.isin(users * num_items + ranked, target_pairs) & (ranked >= 0)
    found = hits.cumsum(axis=1)
    ranks = np.arange(1, ranked.shape[1] + 1)
    gains = 1 / np.log2(1 + ranks)
    gained, best = (hits * gains).cumsum(axis=1), gains.cumsum()
    first_hit = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.inf)
    metrics = {}
    for cutoff in cutoffs:
        at_cutoff = found[:, cutoff - 1]
        metrics[f"recall@{cutoff}"] = at_cutoff / targets.lengths
        metrics[f"hitrate@{cutoff}"] = (at_cutoff > 0).astype(np.float64)
        ideal = best[np.minimum(targets.lengths, cutoff) - 1]
        metrics[f"ndcg@{cutoff}"] = gained[:, cutoff - 1] / ideal
        metrics[f"mrr@{cutoff}"] = np.where(first_hit <= cutoff, 1 / first_hit, 0)
    return metrics


def coverage(ranked: NDArray[np.integer], num_items: int, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """``{"coverage@10": ..., ...}``: the share of ``num_items`` that is among the first K of any list.

    ranked: as in :func:`ranking_metrics`.
    """
    shown = {cutoff: np.unique(ranked[:, :cutoff]) for cutoff in cutoffs}
    return {f"coverage@{cutoff}": float((items >= 0).sum() / num_items) for cutoff, items in shown.items()}


def _check(ranked: NDArray[np.integer], targets: Histories, cutoffs: Sequence[int]) -> None:
    if ranked.ndim != 2 or len(ranked) != len(targets) or len(ranked) == 0:
        raise ValueError(
            f"ranked must have shape [E, n] with E = {len(targets)} >= 1, the number of lists in targets, "
            f"got {list(ranked.shape)}"
        )
    if not all(1 <= cutoff <= ranked.shape[1] for cutoff in cutoffs):
        raise ValueError(f"cutoffs must lie in 1 to {ranked.shape[1]}, the length of ranked, got {cutoffs}")
    if (targets.lengths == 0).any():
        raise ValueError(f"targets must hold an item a user, user {np.argmin(targets.lengths)} has none")
    in_order = np.sort(ranked, axis=1)
    repeated = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise ValueError(f"ranked must hold distinct items a user, user {np.argmax(repeated)} repeats one")
