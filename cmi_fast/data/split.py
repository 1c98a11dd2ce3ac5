"""Splits of a log into train, valid and test: by day as in the paper, by each user's last plays, or by shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.errors import InputError

if TYPE_CHECKING:
    from cmi_fast.data.interactions import Interactions

TRAIN, VALID, TEST = range(3)
SHARES = (0.8, 0.1, 0.1)
KINDS = "expected day, last, ratio or ratio:TRAIN,VALID,TEST such as ratio:0.8,0.1,0.1"


@dataclass(frozen=True)
class Split:
    """A log in three parts, of which each user's plays in one come before those in the next.

    by: how it was split. U users and V items are those of the whole log.
    part: [n] uint8, of each play: TRAIN, VALID or TEST.
    train: [U] the training plays, in order, repeats kept; train_days int32: the day of each.
    before_test: [U] all plays but those of the test part.
    valid, test: [U] the distinct items each user played in that part (the targets), by first play.
    catalogue: bool [V], items with a training play: what may be recommended.
    """

    interactions: Interactions
    by: str
    part: NDArray[np.uint8]
    train: Histories
    train_days: NDArray[np.int32]
    before_test: Histories
    valid: Histories
    test: Histories
    catalogue: NDArray[np.bool_]

    @property
    def num_users(self) -> int:
        return len(self.train)

    @property
    def num_items(self) -> int:
        return len(self.catalogue)

    @property
    def training_end(self) -> int:
        """The first day after training: of a split by day, that of the valid plays."""
        return int(self.interactions.days.max()) - 1 if self.by == "day" else int(self.train_days.max()) + 1

    def parts(self) -> tuple[Interactions, Interactions, Interactions]:
        """The plays of train, valid and test, with the ids of all: what ``Recommender.fit`` and ``evaluate`` take."""
        train, valid, test = (self.interactions.subset(self.part == part) for part in (TRAIN, VALID, TEST))
        return train, valid, test


def split(interactions: Interactions, by: str = "day") -> Split:
    """Split a log (see ``Interactions.split``). Raises InputError where a part would have no plays."""
    kind, _, shares = by.partition(":")
    if kind == "day" and not shares:
        part = _by_day(interactions.days)
    elif kind == "last" and not shares:
        part = _by_counts(interactions, np.int64(1), np.int64(1), least=3)
        _require_parts(part, "a split by last plays needs users with 3 plays or more")
    elif kind == "ratio":
        _, valid_share, test_share = _shares(by, shares) if shares else SHARES
        counts = np.bincount(interactions.users, minlength=interactions.num_users)
        part = _by_counts(interactions, _portion(counts, valid_share), _portion(counts, test_share), least=1)
        _require_parts(part, f"users have {counts.max()} plays at most, too few for shares as in {by!r}")
    else:
        raise InputError(f"split {by!r}: {KINDS}")
    train = _histories(interactions, part == TRAIN)
    return Split(
        interactions,
        by,
        part,
        train,
        interactions.days[part == TRAIN],
        _histories(interactions, part < TEST),
        _targets(interactions, part == VALID),
        _targets(interactions, part == TEST),
        np.bincount(train.items, minlength=interactions.num_items) > 0,
    )


def _by_day(days: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The last calendar day tests, the one before validates."""
    present = np.unique(days)
    if len(present) < 3:
        raise InputError(f"found plays on {len(present)} days, the split needs 3 (train, valid, test)")
    test_day = int(present[-1])
    if present[-2] != test_day - 1:
        found = f"the last days with plays are {present[-2]} and {test_day}"
        raise InputError(f"no plays on day {test_day - 1}, the valid day before test day {test_day}: {found}")
    return (days >= test_day - 1).astype(np.uint8) + (days == test_day)


def _by_counts(
    interactions: Interactions, valid: NDArray[np.int64] | np.int64, test: NDArray[np.int64] | np.int64, least: int
) -> NDArray[np.uint8]:
    """The last plays of each user with ``least`` or more: ``test`` [U] test, ``valid`` [U] before them validate."""
    users = interactions.users
    counts = np.bincount(users, minlength=interactions.num_users)
    enough = counts >= least
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(users))  # 1 for the last
    test_counts = np.where(enough, test, 0)[users]
    valid_counts = np.where(enough, valid, 0)[users]
    return (from_end <= test_counts + valid_counts).astype(np.uint8) + (from_end <= test_counts)


def _portion(counts: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    return np.floor(counts * share + 1e-9).astype(np.int64)  # 10 * 0.1 is a whole play


def _shares(by: str, text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(share) for share in text.split(","))
    except ValueError:
        raise InputError(f"split {by!r}: {KINDS}") from None
    if not (min(train, valid, test) > 0 and math.isclose(train + valid + test, 1)):
        raise InputError(f"split {by!r}: expected three shares above 0 that add up to 1")
    return train, valid, test


def _require_parts(part: NDArray[np.uint8], problem: str) -> None:
    if len(np.unique(part)) < 3:
        raise InputError(f"{problem}: train, valid or test is empty")


def _histories(interactions: Interactions, chosen: NDArray[np.bool_]) -> Histories:
    """The chosen plays by user: being sorted by user already, they only need offsets."""
    users = np.arange(interactions.num_users + 1, dtype=np.int32)
    return Histories(np.searchsorted(interactions.users[chosen], users), interactions.items[chosen])


def _targets(interactions: Interactions, chosen: NDArray[np.bool_]) -> Histories:
    """The chosen plays by user, without items that the user has among them already."""
    plays = np.flatnonzero(chosen)
    pairs = interactions.users[plays].astype(np.int64) * interactions.num_items + interactions.items[plays]
    _, first = np.unique(pairs, return_index=True)
    distinct = np.zeros_like(chosen)
    distinct[plays[first]] = True
    return _histories(interactions, distinct)
