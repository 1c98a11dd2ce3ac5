"""What is evaluated: the users, targets and candidates of one day, the same for every model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.data.split import Split
from cmi_fast.evaluation.metrics import coverage, ranking_metrics, user_metrics

RECENT_DAYS = 3

POLICY: dict[str, str] = {
    "split": "the parts of a log: days, where it is split by day, else a user's last plays",
    "users": "all users with at least one play in the task's part",
    "targets": "the distinct items a user plays in that part; cold items and repeats count as misses",
    "history": "all plays before the task's part; for test that includes valid",
    "excluded": "items of the user's history",
    "candidates": "items with at least one training play",
    "fitted on": "training plays only; the valid part chooses settings",
    "users without history": f"items by popularity on the last {RECENT_DAYS} training days",
    "recall": "hits among the first K / number of targets, averaged over users",
    "hitrate": "share of users with a hit among the first K",
    "ndcg": "sum of 1 / log2(1 + rank) over hits among the first K / that of the best list, averaged over users",
    "mrr": "1 / rank of the first hit, 0 where it is not among the first K, averaged over users",
    "coverage": "share of the candidates that are among the first K of any user",
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
    def from_split(cls, split: Split, name: Literal["valid", "test"]) -> EvaluationTask:
        """The task of the split's valid or test part."""
        day, before = (split.valid, split.train) if name == "valid" else (split.test, split.before_test)
        users = np.flatnonzero(day.lengths)
        popular = popularity_order(split, split.training_end - RECENT_DAYS)
        return cls(name, users, day.select(users), before.select(users), split.catalogue, popular)

    def sample(self, most: int) -> EvaluationTask:
        """The task of at most ``most`` of the users, evenly spaced."""
        if len(self.users) <= most:
            return self
        chosen = np.linspace(0, len(self.users) - 1, most).astype(np.int64)
        users, targets, history = self.users[chosen], self.targets.select(chosen), self.history.select(chosen)
        return replace(self, users=users, targets=targets, history=history)

    def with_fallback(self, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
        """``ranked`` [E, n] with the lists of users without history replaced by the popular items."""
        popular = np.full(ranked.shape[1], -1)
        popular[: len(self.popular)] = self.popular[: ranked.shape[1]]
        return np.where(self.history.lengths[:, None] == 0, popular, ranked)

    def evaluate(self, ranked: NDArray[np.int64]) -> dict[str, float]:
        """Metrics of the item rows ``ranked`` [E, >= 50] under :data:`POLICY`."""
        ranked = self.with_fallback(ranked)
        return ranking_metrics(ranked, self.targets) | coverage(ranked, int(self.catalogue.sum()))

    def evaluate_users(self, ranked: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Of each user [E] the metrics whose means :meth:`evaluate` gives."""
        return user_metrics(self.with_fallback(ranked), self.targets)


def recent_plays(split: Split) -> NDArray[np.int64]:
    """How often each item [V] was played on the last training days."""
    recent = split.train_days >= split.training_end - RECENT_DAYS
    return np.bincount(split.train.items[recent], minlength=split.num_items)


def popularity_order(split: Split, since_day: int | None = None) -> NDArray[np.int64]:
    """Item rows [P] of the catalogue by falling number of training plays from ``since_day`` on (None: all);
    ties by plays on all training days, then by row."""
    return order_by_plays(split.train.items, split.train_days, split.catalogue, since_day)


def order_by_plays(
    items: NDArray[np.int32], days: NDArray[np.int32], catalogue: NDArray[np.bool_], since_day: int | None = None
) -> NDArray[np.int64]:
    """:func:`popularity_order` of plays [n] of ``items`` on ``days``, among the items of ``catalogue`` [V]."""
    total = np.bincount(items, minlength=len(catalogue))
    recent = total if since_day is None else np.bincount(items[days >= since_day], minlength=len(catalogue))
    order = np.lexsort((-total, -recent))  # stable: the last tie falls to the smaller row
    return order[catalogue[order]]
