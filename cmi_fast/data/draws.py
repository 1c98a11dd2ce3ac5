"""What the batch sampler draws, by definition: ``csrc/sampler`` draws the same, only faster.

Random numbers are functions of a key and a counter, so that any sample can be drawn directly, by any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Rows = NDArray[np.int64]

PERMUTATION_ROUNDS = 64


def words(keys: Words | int, counters: NDArray[np.integer] | int) -> Words:
    """Random word number ``counters`` of the streams ``keys``: the output of SplitMix64 started at the key."""
    z = np.atleast_1d(np.asarray(keys, np.uint64)) + (np.atleast_1d(np.asarray(counters, np.uint64)) + np.uint64(1)) * (
        np.uint64(0x9E3779B97F4A7C15)
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def word(key: int, counter: int) -> int:
    """One word, to serve as the key of a stream of its own."""
    return int(words(key, counter)[0])


def uniform(random: Words) -> NDArray[np.float64]:
    """A number in [0, 1) from each word. Times n it stays below n, rounded as well."""
    return (random >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(random: Words, n: Rows | int) -> Rows:
    """An integer in [0, n) from each word."""
    return (uniform(random) * n).astype(np.int64)


def permuted(x: Rows, n: Rows | int, keys: Words | int) -> Rows:
    """Where the random permutation ``keys`` of 0 ... ``n`` - 1 puts ``x``, without the permutation being made.

    The swap-or-not shuffle (Hoang, Morris, Rogaway 2012): each round pairs x with pivot - x and swaps half the pairs.
    """
    for number in range(PERMUTATION_ROUNDS):
        round_keys = words(keys, number)
        partners = (below(round_keys, n) - x) % n
        swap = words(round_keys, np.maximum(x, partners)) >> np.uint64(63) == 1
        x = np.where(swap, partners, x)
    return x


class Drawn(NamedTuple):
    """B samples, in the order and the shapes of :class:`cmi_fast.data.sampler.Batch`."""

    users: Rows
    history: Rows
    lengths: Rows
    views: NDArray[np.bool_]
    positives: Rows
    negatives: Rows


@dataclass(frozen=True)
class Draws:
    """The samples of an epoch, drawn from flat arrays.

    Sample i of an epoch is number p, i's place in a random permutation of all; number ``starts[u]`` + j belongs to
    user u, and stands for the play that follows play j of ``counts[u]``, or, with ``chosen_per_user``, play number j of
    a random permutation of them.

    Shapes: offsets [U + 1], items [n] as in :class:`cmi_fast.data.Histories`; starts [U + 1]; counts [U]; catalogue [C]
    rows; unplayed [U], played_starts [U + 1] and unplayed_below as :class:`cmi_fast.data.sampler.UnplayedItems` has
    them.
    """

    offsets: Rows
    items: NDArray[np.int32]
    starts: Rows
    counts: Rows
    catalogue: Rows
    unplayed: Rows
    played_starts: Rows
    unplayed_below: Rows
    max_history: int
    view_share: float
    disjoint_views: bool
    chosen_per_user: bool

    def draw(self, epoch: int, first: int, count: int) -> Drawn:
        """Samples ``first`` ... ``first + count - 1`` of the epoch whose key is ``epoch``."""
        order, choice, draws = (word(epoch, stream) for stream in range(3))
        samples = np.arange(first, first + count)
        numbers = permuted(samples, int(self.starts[-1]), order)
        users = np.searchsorted(self.starts, numbers, side="right") - 1
        before = numbers - self.starts[users]
        if self.chosen_per_user:
            before = permuted(before, self.counts[users], words(choice, users))
        plays = self.offsets[users] + 1 + before
        lengths = np.minimum(before + 1, self.max_history)
        columns = np.arange(lengths.max())
        inside = columns < lengths[:, None]  # [B, L]
        history = np.zeros(inside.shape, np.int64)
        history[inside] = self.items[((plays - lengths)[:, None] + columns)[inside]]
        keys = words(draws, samples)
        return Drawn(
            users=users,
            history=history,
            lengths=lengths,
            views=self._views(inside, lengths, keys),
            positives=self.items[plays].astype(np.int64),
            negatives=self._negatives(users, words(keys, 0)),
        )

    def _views(self, inside: NDArray[np.bool_], lengths: Rows, keys: Words) -> NDArray[np.bool_]:
        if self.disjoint_views:
            half = _subset(lengths, np.maximum(lengths // 2, 1), keys, 0)
            alone = lengths[:, None] == 1
            return np.stack((half, inside & (~half | alone)))
        sizes = np.maximum(np.floor(self.view_share * lengths).astype(np.int64), 1)
        return np.stack([_subset(lengths, sizes, keys, view) for view in range(2)])

    def _negatives(self, users: Rows, random: Words) -> Rows:
        ranks = below(random, self.unplayed[users])
        ends = np.searchsorted(self.unplayed_below, users * len(self.catalogue) + ranks, side="right")
        return self.catalogue[ranks + ends - self.played_starts[users]]


def _subset(lengths: Rows, sizes: Rows, keys: Words, view: int) -> NDArray[np.bool_]:
    """A uniformly random ``sizes`` [B] of the first ``lengths`` [B] places of each row: Knuth's selection sampling.

    Place j is taken with the probability (places still to take) / (places left).
    """
    taken = np.zeros((len(lengths), int(lengths.max())), bool)
    left = sizes
    for place in range(taken.shape[1]):
        places_left = np.maximum(lengths - place, 0)
        taken[:, place] = uniform(words(keys, 1 + 2 * place + view)) * places_left < left
        left = left - taken[:, place]
    return taken
