"""What is evaluated: the users, targets and candidates of one day, the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.data.split import DaySplit
from cmi_fast.evaluation.metrics import CUTOFFS, ranking_metrics

RECENT_DAYS = 3

POLICY: dict[str, str] = {
    "users": "all users with at least one play on the task's day",
    "targets": "the distinct items a user plays on that day; cold items and repeats count as misses",
    "history": "all plays before the task's day; for the test day that includes the valid day",
    "excluded": "items of the user's history",
    "candidates": "items with at least one play on the training days",
    "fitted on": "training days only; the valid day chooses settings",
    "users without history": f"items by popularity on the last {RECENT_DAYS} training days",
    "recall": "hits among the first K / number of targets, averaged over users",
    "hitrate": "share of users with a hit among the first K",
}


@dataclass(frozen=True)
class EvaluationTask:
    """Rank the catalogue for E users, given their histories; V items in all.

    Shapes: users [E] user rows; targets, history: E lists of item rows; catalogue [V] bool, what may
    be recommended; popular [P] item rows, the catalogue by recent popularity (see
    :func:`popularity_order`). The items of ``history`` are also those that a ranking leaves out.
    """

    name: Literal["valid", "test"]
    users: NDArray[np.int64]
    targets: Histories
    history: Histories
    catalogue: NDArray[np.bool_]
    popular: NDArray[np.int64]

    @classmethod
    def from_split(cls, split: DaySplit, name: Literal["valid", "test"]) -> EvaluationTask:
        """The task of the split's valid or test day."""
        day, before = (split.valid, split.train) if name == "valid" else (split.test, split.before_test)
        users = np.flatnonzero(day.lengths)
        popular = popularity_order(split, split.valid_day - RECENT_DAYS)
        return cls(name, users, day.select(users), before.select(users), split.catalogue, popular)

    def with_fallback(self, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
        """``ranked`` [E, n] with the lists of users without history replaced by the popular items."""
        popular = np.full(ranked.shape[1], -1)
        popular[: len(self.popular)] = self.popular[: ranked.shape[1]]
        return np.where(self.history.lengths[:, None] == 0, popular, ranked)

    def evaluate(self, ranked: NDArray[np.int64]) -> dict[str, float]:
        """Recall and HitRate of the item rows ``ranked`` [E, >= 50] under :data:`POLICY`."""
        return ranking_metrics(self.with_fallback(ranked), self.targets, CUTOFFS)


def popularity_order(split: DaySplit, since_day: int | None = None) -> NDArray[np.int64]:
    """Item rows [P] of the catalogue by falling number of training plays from ``since_day`` on (None: all);
    ties by plays on all training days, then by row."""
    items = split.train.items
    total = np.bincount(items, minlength=split.num_items)
    if since_day is not None:
        items = items[split.train_days >= since_day]
    recent = np.bincount(items, minlength=split.num_items)
    order = np.lexsort((-total, -recent))  # stable: the last tie falls to the smaller row
    return order[split.catalogue[order]]
