"""Training batches from users' histories: history, two views, the next play, one item never played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data import draws
from cmi_fast.data.compiled import compiled
from cmi_fast.data.histories import Histories
from cmi_fast.errors import InputError


@dataclass(frozen=True)
class Batch:
    """B training samples; L is the longest history among them. All arrays are C-contiguous.

    Shapes: users [B] int64; history [B, L] int64 item rows in order of time, padded on the right with row 0;
    lengths [B] int64, from 1 to L; views [2, B, L] bool, two subsets of each history, False in the padding;
    positives [B] int64, the play that followed the history; negatives [B] int64, an item never played.
    """

    users: NDArray[np.int64]
    history: NDArray[np.int64]
    lengths: NDArray[np.int64]
    views: NDArray[np.bool_]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


class BatchSampler:
    """Batches of (history, views, positive, negative) in random order; any batch of any epoch can be drawn directly.

    A sample is a play that has at least one earlier play of its user in ``train``; users who played the whole
    catalogue give none. Its history is the last
    ``max_history`` items before it. An epoch visits every sample once, or, with ``samples_per_user``, that
    many distinct random samples of each user (all where there are fewer); the last batch may be smaller.

    A view is a uniformly random subset of the history s of size max(1, floor(view_share |s|)), order kept,
    and the two views are independent (the paper's text). With ``disjoint_views`` they are the two halves of
    a random split (the authors' code; ``view_share`` is then unused): floor(|s| / 2) items and the rest, or s
    twice where |s| = 1. The negative is uniform over the items of ``catalogue`` that the user never played.

    Batch b of epoch e depends on ``seed``, e and b alone, not on what was drawn before, nor on threads or ``backend``.

    Args:
        train: the training plays of each of U users, in order of time; arrays may be memory maps.
        catalogue: [V] bool, the items that may be recommended.
        backend: ``"cpu"``, compiled, ``"reference"``, numpy, or ``"auto"``, the first of them that is installed.

    Raises:
        InputError: an option is out of range, or no user has two plays and an item never played.
    """

    def __init__(
        self,
        train: Histories,
        catalogue: NDArray[np.bool_],
        *,
        batch_size: int,
        max_history: int = 100,
        view_share: float = 0.5,
        samples_per_user: int | None = None,
        disjoint_views: bool = False,
        seed: int = 0,
        backend: str = "auto",
    ) -> None:
        _require_at_least("batch_size", batch_size, 1)
        _require_at_least("max_history", max_history, 1)
        _require_at_least("seed", seed, 0)
        if samples_per_user is not None:
            _require_at_least("samples_per_user", samples_per_user, 1)
        if not 0 < view_share <= 1:
            raise InputError(f"view_share: found {view_share}, expected a share above 0 and at most 1")
        unplayed = UnplayedItems(train, catalogue)
        # Without an item left to draw as negative a user gives no samples.
        counts = np.where(unplayed.counts > 0, np.maximum(train.lengths - 1, 0), 0)
        if not counts.any():
            raise InputError("training days: found no user with two plays and an item never played")
        in_epoch = counts if samples_per_user is None else np.minimum(counts, samples_per_user)
        self.num_samples = int(in_epoch.sum())  # in one epoch
        self.num_items = len(catalogue)
        self._batch_size = batch_size
        # SeedSequence makes one word of a seed of any size.
        self._key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self._draws = _implementation(backend)(
            offsets=train.offsets,
            items=train.items,
            starts=np.concatenate(([0], np.cumsum(in_epoch))),
            counts=counts,
            catalogue=unplayed.catalogue,
            unplayed=unplayed.counts,
            played_starts=unplayed.starts,
            unplayed_below=unplayed.below,
            max_history=max_history,
            view_share=view_share,
            disjoint_views=disjoint_views,
            chosen_per_user=samples_per_user is not None,
        )

    def __len__(self) -> int:
        """Batches in one epoch."""
        return ceil(self.num_samples / self._batch_size)

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch ``index`` of epoch ``epoch``, both from 0. May be called by several threads at once."""
        first = index * self._batch_size
        count = min(self._batch_size, self.num_samples - first)
        return Batch(*self._draws.draw(draws.word(self._key, epoch), first, count))

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index``, from batch ``start`` on."""
        return (self.batch(index, batch) for batch in range(start, len(self)))


def _implementation(backend: str) -> type[draws.Draws]:
    if backend not in ("auto", "cpu", "reference"):
        raise InputError(f"backend: found {backend!r}, expected 'auto', 'cpu' or 'reference'")
    if backend == "cpu" and compiled is None:
        raise InputError("backend 'cpu': the package was installed without compiled code")
    return draws.Draws if backend == "reference" or compiled is None else compiled.Draws


class UnplayedItems:
    """The catalogue items that each user never played, addressed by rank without being listed.

    Number the catalogue's items 0 ... C - 1. Where a user played the numbers p_0 < p_1 < ..., p_j - j of the
    unplayed ones lie below p_j, so the unplayed number of rank r is r + #{j : p_j - j <= r}: one binary
    search, and no draw is ever rejected.

    ``below`` holds the users' lists of p_j - j end to end, list u at ``starts[u]:starts[u + 1]`` and lifted by u C, so
    that they form one sorted array; ``counts`` [U] is how many items each user never played.
    """

    def __init__(self, train: Histories, catalogue: NDArray[np.bool_]) -> None:
        self.catalogue = np.flatnonzero(catalogue)  # [C]
        size = len(self.catalogue)
        numbers = np.cumsum(catalogue) - 1
        recommendable = catalogue[train.items]
        items = numbers[train.items[recommendable]]
        played = np.sort(train.users[recommendable] * size + items)  # numpy's unique takes twenty times as long
        played = played[np.diff(played, prepend=-1) > 0]
        users = played // max(size, 1)
        counts = np.bincount(users, minlength=len(train))
        self.counts = size - counts
        self.starts = np.concatenate(([0], np.cumsum(counts)))
        self.below = played - (np.arange(len(played)) - self.starts[users])


def _require_at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option}: found {value}, expected at least {least}")
