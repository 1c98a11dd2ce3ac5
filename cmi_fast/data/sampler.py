"""Training batches from users' histories: history, two views, the next play, one item never played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

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
    """Batches of (history, views, positive, negative) in random order; any epoch can be resumed at any batch.

    A sample is a play that has at least one earlier play of its user in ``train``; users who played the whole
    catalogue give none. Its history is the last
    ``max_history`` items before it. An epoch visits every sample once, or, with ``samples_per_user``, that
    many distinct random samples of each user (all where there are fewer); the last batch may be smaller.

    A view is a uniformly random subset of the history s of size max(1, floor(view_share |s|)), order kept,
    and the two views are independent (the paper's text). With ``disjoint_views`` they are the two halves of
    a random split (the authors' code; ``view_share`` is then unused): floor(|s| / 2) items and the rest, or s
    twice where |s| = 1. The negative is uniform over the items of ``catalogue`` that the user never played.

    Batch b of epoch e depends on ``seed``, e and b alone, not on what was drawn before.

    Args:
        train: the training plays of each of U users, in order of time.
        catalogue: [V] bool, the items that may be recommended.

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
    ) -> None:
        _require_at_least("batch_size", batch_size, 1)
        _require_at_least("max_history", max_history, 1)
        _require_at_least("seed", seed, 0)
        if samples_per_user is not None:
            _require_at_least("samples_per_user", samples_per_user, 1)
        if not 0 < view_share <= 1:
            raise InputError(f"view_share: found {view_share}, expected a share above 0 and at most 1")
        self._unplayed = _UnplayedItems(train, catalogue)
        # Without an item left to draw as negative a user gives no samples.
        self._counts = np.where(self._unplayed.counts > 0, np.maximum(train.lengths - 1, 0), 0)
        if not self._counts.any():
            raise InputError("training days: found no user with two plays and an item never played")
        self._starts = np.concatenate(([0], np.cumsum(self._counts)))
        self._train = train
        self._batch_size = batch_size
        self._max_history = max_history
        self._view_share = view_share
        self._samples_per_user = samples_per_user
        self._disjoint_views = disjoint_views
        self._seed = seed

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        if self._samples_per_user is None:
            return int(self._counts.sum())
        return int(np.minimum(self._counts, self._samples_per_user).sum())

    def __len__(self) -> int:
        """Batches in one epoch."""
        return ceil(self.num_samples / self._batch_size)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``index``, from batch ``start`` on."""
        order = self._order(self._generator(index))
        for batch in range(start, len(self)):
            samples = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield self._batch(samples, self._generator(index, batch))

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self._seed, spawn_key=key)))

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The samples of an epoch in random order; sample starts[u] + i is play i + 1 of user u."""
        total = int(self._starts[-1])
        if self._samples_per_user is None:
            return rng.permutation(total)
        users = np.repeat(np.arange(len(self._counts)), self._counts)
        shuffled_by_user = np.argsort((users << 32) + rng.integers(1 << 32, size=total))
        ranks = np.arange(total) - self._starts[users]
        return rng.permutation(shuffled_by_user[ranks < self._samples_per_user])

    def _batch(self, samples: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        users = np.searchsorted(self._starts, samples, side="right") - 1
        first_plays = self._train.offsets[users]
        plays = first_plays + 1 + samples - self._starts[users]
        lengths = np.minimum(plays - first_plays, self._max_history)
        columns = np.arange(lengths.max())
        inside = columns < lengths[:, None]  # [B, L]
        history = np.zeros(inside.shape, np.int64)
        history[inside] = self._train.items[((plays - lengths)[:, None] + columns)[inside]]
        return Batch(
            users=users,
            history=history,
            lengths=lengths,
            views=self._views(inside, lengths, rng),
            positives=self._train.items[plays].astype(np.int64),
            negatives=self._unplayed.draw(users, rng),
        )

    def _views(
        self, inside: NDArray[np.bool_], lengths: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        if self._disjoint_views:
            half = _random_subsets(inside[None], np.maximum(lengths // 2, 1), rng)[0]
            alone = lengths[:, None] == 1
            return np.stack((half, inside & (~half | alone)))
        sizes = np.maximum(np.floor(self._view_share * lengths).astype(np.int64), 1)
        return _random_subsets(np.broadcast_to(inside, (2, *inside.shape)), sizes, rng)


class _UnplayedItems:
    """The catalogue items that each user never played, addressed by rank without being listed.

    Number the catalogue's items 0 ... C - 1. Where a user played the numbers p_0 < p_1 < ..., p_j - j of the
    unplayed ones lie below p_j, so the unplayed number of rank r is r + #{j : p_j - j <= r}: one binary
    search, and no draw is ever rejected.
    """

    def __init__(self, train: Histories, catalogue: NDArray[np.bool_]) -> None:
        self._rows = np.flatnonzero(catalogue)
        self.catalogue_size = len(self._rows)
        numbers = np.cumsum(catalogue) - 1
        recommendable = catalogue[train.items]
        items = numbers[train.items[recommendable]]
        played = np.unique(train.users[recommendable] * self.catalogue_size + items)
        users, items = np.divmod(played, max(self.catalogue_size, 1))
        counts = np.bincount(users, minlength=len(train))
        self.counts = self.catalogue_size - counts  # [U]
        self._starts = np.cumsum(counts) - counts
        # The users' lists of p_j - j lie end to end, lifted by C a user, so that they form one sorted array.
        self._unplayed_below = played - (np.arange(len(played)) - self._starts[users])

    def draw(self, users: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """One item row for each of ``users`` [B], uniform over what that user never played."""
        ranks = rng.integers(self.counts[users])
        ends = np.searchsorted(self._unplayed_below, users * self.catalogue_size + ranks, side="right")
        return self._rows[ranks + ends - self._starts[users]]


def _random_subsets(inside: NDArray[np.bool_], sizes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Of the True places of each row of ``inside`` [R, B, L], a uniformly random ``sizes`` [B] of them."""
    width = inside.shape[-1]
    # The position in the low digits makes the keys of a row distinct, so that each subset has its exact size.
    keys = rng.integers(np.iinfo(np.int64).max // width, size=inside.shape) * width + np.arange(width)
    keys[~inside] = np.iinfo(np.int64).max
    largest = np.broadcast_to(sizes[:, None] - 1, (*inside.shape[:-1], 1))
    subsets: NDArray[np.bool_] = keys <= np.take_along_axis(np.sort(keys, axis=-1), largest, axis=-1)
    return subsets


def _require_at_least(option: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{option}: found {value}, expected at least {least}")
