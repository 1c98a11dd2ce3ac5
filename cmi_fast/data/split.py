"""The paper's split of a log by day: the last day tests, the one before validates, all others train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.errors import InputError

if TYPE_CHECKING:
    from cmi_fast.data.interactions import Interactions


@dataclass(frozen=True)
class DaySplit:
    """A log split by day (CMI, SIGIR 2022, section 4.1). U users and V items are those of the whole log.

    valid_day, test_day: values of ``interactions.days``.
    train: [U] plays before the valid day, in order, repeats kept; train_days int32: the day of each.
    before_test: [U] all plays before the test day.
    valid, test: [U] the distinct items each user played on that day (the targets), by first play.
    catalogue: bool [V], items with a training play: what may be recommended.
    """

    interactions: Interactions
    valid_day: int
    test_day: int
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

    def parts(self) -> tuple[Interactions, Interactions, Interactions]:
        """The plays of train, valid and test, with the ids of all: what ``Recommender.fit`` and ``evaluate`` take."""
        days = self.interactions.days
        train, valid, test = (days < self.valid_day, days == self.valid_day, days == self.test_day)
        return self.interactions.subset(train), self.interactions.subset(valid), self.interactions.subset(test)


def split_by_day(interactions: Interactions) -> DaySplit:
    """Split a log at its last two calendar days.

    Raises InputError for fewer than three days with plays, and for a valid day without any.
    """
    days = interactions.days
    present = np.unique(days)
    if len(present) < 3:
        raise InputError(f"found plays on {len(present)} days, the split needs 3 (train, valid, test)")
    test_day = int(present[-1])
    valid_day = test_day - 1
    if present[-2] != valid_day:
        found = f"the last days with plays are {present[-2]} and {test_day}"
        raise InputError(f"no plays on day {valid_day}, the valid day before test day {test_day}: {found}")
    training = days < valid_day
    train = _histories(interactions, training)
    catalogue = np.bincount(train.items, minlength=interactions.num_items) > 0
    return DaySplit(
        interactions,
        valid_day,
        test_day,
        train,
        days[training],
        _histories(interactions, days < test_day),
        _targets(interactions, days == valid_day),
        _targets(interactions, days == test_day),
        catalogue,
    )


def _histories(interactions: Interactions, chosen: NDArray[np.bool_]) -> Histories:
    """The chosen plays by user: being sorted by user already, they only need offsets."""
    counts = np.bincount(interactions.users[chosen], minlength=interactions.num_users)
    return Histories(np.concatenate(([0], np.cumsum(counts))), interactions.items[chosen])


def _targets(interactions: Interactions, chosen: NDArray[np.bool_]) -> Histories:
    """The chosen plays by user, without items that the user has among them already."""
    plays = np.flatnonzero(chosen)
    pairs = interactions.users[plays].astype(np.int64) * interactions.num_items + interactions.items[plays]
    _, first = np.unique(pairs, return_index=True)
    distinct = np.zeros_like(chosen)
    distinct[plays[first]] = True
    return _histories(interactions, distinct)
