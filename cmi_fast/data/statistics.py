"""What a log and its split hold, in figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.data.interactions import Interactions
from cmi_fast.data.split import TEST, TRAIN, VALID, Split
from cmi_fast.tables import text_table


@dataclass(frozen=True)
class TargetStatistics:
    """The targets of an evaluation day: the distinct (user, item) pairs played on it.

    cold_share: of targets, those never played in training; repeat_share: those that their user played on
    an earlier day; users_without_history: users with targets and no play on an earlier day.
    """

    count: int
    cold_share: float
    repeat_share: float
    users_without_history: int


@dataclass(frozen=True)
class PartStatistics:
    """One part of the split: its days, users and items with plays, plays and, but for train, its targets."""

    name: str
    first_day: int
    last_day: int
    users: int
    items: int
    plays: int
    targets: TargetStatistics | None = None


@dataclass(frozen=True)
class Statistics:
    """A row of the paper's Table 2 (users, items, interactions) and more; str() gives plain tables.

    days: days with plays; density: interactions / (users x items); plays_median, plays_max: per user.
    """

    users: int
    items: int
    interactions: int
    days: int
    density: float
    plays_median: float
    plays_max: int
    parts: tuple[PartStatistics, ...]

    def __str__(self) -> str:
        log = [
            ["users", "items", "interactions", "days", "density", "plays a user: median", "max"],
            [
                f"{self.users:,}",
                f"{self.items:,}",
                f"{self.interactions:,}",
                f"{self.days:,}",
                f"{self.density:.4%}",
                f"{self.plays_median:,g}",
                f"{self.plays_max:,}",
            ],
        ]
        parts = [["part", "days", "users", "items", "plays", "targets", "cold", "repeats", "no history"]]
        return "\n\n".join(text_table(rows) for rows in (log, parts + [_cells(part) for part in self.parts]))


def statistics(interactions: Interactions, by: str = "day") -> Statistics:
    """Count what a log and its split hold. Raises InputError where the log cannot be split."""
    split = interactions.split(by)
    plays = np.bincount(interactions.users, minlength=interactions.num_users)
    return Statistics(
        users=interactions.num_users,
        items=interactions.num_items,
        interactions=len(interactions.users),
        days=len(np.unique(interactions.days)),
        density=len(interactions.users) / (interactions.num_users * interactions.num_items),
        plays_median=float(np.median(plays)),
        plays_max=int(plays.max()),
        parts=(
            _part("train", interactions, split.part == TRAIN),
            _part(
                "valid",
                interactions,
                split.part == VALID,
                _target_statistics(split, split.valid, split.train),
            ),
            _part(
                "test",
                interactions,
                split.part == TEST,
                _target_statistics(split, split.test, split.before_test),
            ),
        ),
    )


def _part(
    name: str,
    interactions: Interactions,
    chosen: NDArray[np.bool_],
    targets: TargetStatistics | None = None,
) -> PartStatistics:
    days = interactions.days[chosen]
    return PartStatistics(
        name=name,
        first_day=int(days.min()),
        last_day=int(days.max()),
        users=_count_distinct(interactions.users[chosen]),
        items=_count_distinct(interactions.items[chosen]),
        plays=len(days),
        targets=targets,
    )


def _count_distinct(rows: NDArray[np.int32]) -> int:
    return int(np.count_nonzero(np.bincount(rows)))


def _target_statistics(split: Split, targets: Histories, earlier: Histories) -> TargetStatistics:
    return TargetStatistics(
        count=len(targets.items),
        cold_share=float(np.mean(~split.catalogue[targets.items])),
        repeat_share=_repeat_share(targets, earlier, split.num_items),
        users_without_history=int(np.sum((targets.lengths > 0) & (earlier.lengths == 0))),
    )


def _repeat_share(targets: Histories, earlier: Histories, num_items: int) -> float:
    """The share of targets that are in the same user's earlier list: both as numbers, user * V + item."""
    wanted = np.sort(targets.users * num_items + targets.items)
    played = earlier.users * num_items + earlier.items
    place = np.minimum(np.searchsorted(wanted, played), len(wanted) - 1)
    repeated = np.zeros(len(wanted), dtype=bool)
    repeated[place[wanted[place] == played]] = True
    return float(repeated.mean())


def _cells(part: PartStatistics) -> list[str]:
    days = f"{part.first_day}..{part.last_day}" if part.first_day != part.last_day else f"{part.last_day}"
    cells = [part.name, days, f"{part.users:,}", f"{part.items:,}", f"{part.plays:,}"]
    if part.targets is None:
        return [*cells, "-", "-", "-", "-"]
    targets = part.targets
    shares = [f"{targets.cold_share:.2%}", f"{targets.repeat_share:.2%}"]
    return [*cells, f"{targets.count:,}", *shares, f"{targets.users_without_history:,}"]
