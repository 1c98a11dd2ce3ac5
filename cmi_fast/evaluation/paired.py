"""Is one system better than another? A paired bootstrap over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS_AT_ONCE = 4_000_000  # 32 MB of user numbers


@dataclass(frozen=True)
class PairedDifference:
    """The means of two systems, their difference a - b, and the interval [low, high] that holds it."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    users: ArrayLike | None = None,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """The difference of the means of ``a`` and ``b``, with a bootstrap interval (percentiles) over users.

    Entry i of both is a metric of the same user on the same day, averaged over seeds beforehand: a resample draws
    users, with all their days, so that neither days nor seeds count as evidence of their own. The interval says what
    other users might give, not what other seeds might.

    Args:
        a, b: [n] finite numbers.
        users: [n], whose entry each is; None: every entry is another user's.
        resamples: how many times as many users as there are get drawn with replacement.
        level: the share of the resamples' differences that the interval holds.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: a shape or a value does not fit; the message names it.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    number, count = _users(a, b, users)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    # A mean over entries is the ratio of two sums over users.
    sums = np.bincount(number, a - b, minlength=count)
    entries = np.bincount(number, minlength=count)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    block = max(1, DRAWS_AT_ONCE // count)
    for first in range(0, resamples, block):
        drawn = rng.integers(count, size=(min(block, resamples - first), count), dtype=np.int32)
        differences[first : first + len(drawn)] = sums[drawn].sum(1) / entries[drawn].sum(1)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(float(a.mean()), float(b.mean()), float((a - b).mean()), float(low), float(high))


def _users(a: NDArray[np.float64], b: NDArray[np.float64], users: ArrayLike | None) -> tuple[NDArray[np.intp], int]:
    """The number of the user of each entry, from 0, and how many there are."""
    if a.ndim != 1 or len(a) == 0 or a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape [n], n >= 1, got {list(a.shape)} and {list(b.shape)}")
    for name, values in (("a", a), ("b", b)):
        if not np.isfinite(values).all():
            place = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"{name} must hold finite numbers, entry {place} is {values[place]}")
    if users is None:
        return np.arange(len(a)), len(a)
    ids = np.asarray(users)
    if ids.shape != a.shape:
        raise ValueError(f"users must have the shape of a, {list(a.shape)}, got {list(ids.shape)}")
    distinct, number = np.unique(ids, return_inverse=True)
    return number, len(distinct)
