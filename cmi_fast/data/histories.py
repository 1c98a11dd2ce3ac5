"""Jagged lists of item rows, one per user, in two flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Histories:
    """Lists of item rows by user, compressed: list ``u`` is ``items[offsets[u]:offsets[u + 1]]``.

    Shapes: offsets [U + 1] int64, starting at 0 and never falling; items [n] int32.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    @classmethod
    def group(cls, users: NDArray[np.integer], items: NDArray[np.integer], num_users: int) -> Histories:
        """Collect ``items`` by ``users`` (both [n]); the order within a user is kept."""
        order = np.argsort(users, kind="stable")
        counts = np.bincount(users, minlength=num_users)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return cls(offsets, items[order].astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> NDArray[np.int32]:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of items of each list, [U]."""
        return np.diff(self.offsets)

    @property
    def users(self) -> NDArray[np.int64]:
        """The user of each entry of ``items``, [n]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def select(self, users: NDArray[np.integer]) -> Histories:
        """The lists of ``users`` [E], in that order."""
        lengths = self.lengths[users]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        starts = np.repeat(self.offsets[:-1][users] - offsets[:-1], lengths)
        return Histories(offsets, self.items[starts + np.arange(offsets[-1])])

    def last(self, count: int) -> Histories:
        """At most the last ``count`` items of each list."""
        lengths = np.minimum(self.lengths, count)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        starts = np.repeat(self.offsets[1:] - lengths - offsets[:-1], lengths)
        return Histories(offsets, self.items[starts + np.arange(offsets[-1])])
