"""An encoded log: plays as integer rows of users and items, in the order in which each user played them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.data.log import Log, extract
from cmi_fast.data.plays import UNREADABLE, Source, one_line
from cmi_fast.data.read import read_log
from cmi_fast.data.split import DaySplit, split_by_day
from cmi_fast.errors import InputError


@dataclass(frozen=True)
class Interactions:
    """Plays sorted by user, then time; where times tie, in the order of the log.

    Shapes: users, items, days int32 [n] and times int64 [n] (only their order matters); user_ids [U] and
    item_ids [V], int64 or str objects, sorted: the original id of each row.
    notes: what was decided while reading, one sentence each, for people.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    days: NDArray[np.int32]
    times: NDArray[np.int64]
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, *, where: str | None = None) -> Interactions:
        """Read a log from a .parquet, .csv or .csv.gz file.

        Columns: ``user_id``, ``item_id`` and ``day`` (integers, used as they are) or ``timestamp`` (seconds
        or milliseconds since 1970, told apart by magnitude; without a day column the days are UTC days
        counted from the first), or both: the day splits, the timestamp orders. Or KuaiRand's ``user_id``,
        ``video_id``, ``date``, ``time_ms``.

        where: an SQL condition on the columns of the file, e.g. ``"long_view = 1 and play_time_ms > 3000"``.
        Raises InputError for a file, column, value or condition that cannot be used.
        """
        return cls._encode(read_log(path, where))

    @classmethod
    def from_frame(
        cls, frame: pl.DataFrame | pl.LazyFrame, *, source: str = "frame", where: str | None = None
    ) -> Interactions:
        """As ``read``, from a polars frame; ``source`` is what error messages call it (rows count from 0)."""
        try:
            return cls._encode(extract(frame.lazy(), Source(source), where))
        except UNREADABLE as error:
            raise InputError(f"{source}: cannot be read: {one_line(error)}") from error

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def split(self) -> DaySplit:
        """The paper's split: train, the last day but one (valid) and the last day (test).

        Raises InputError for fewer than three days, or where a part has no plays.
        """
        return split_by_day(self)

    def histories(self) -> Histories:
        """The plays of each user, in order."""
        users = np.arange(self.num_users + 1, dtype=np.int32)
        return Histories(np.searchsorted(self.users, users), self.items)

    def subset(self, chosen: NDArray[np.bool_]) -> Interactions:
        """The chosen plays [n], with the ids of all."""
        plays = {name: getattr(self, name)[chosen] for name in ("users", "items", "days", "times")}
        return replace(self, **plays)

    @classmethod
    def _encode(cls, log: Log) -> Interactions:
        users, user_ids = _rows(log.frame["user_id"])
        items, item_ids = _rows(log.frame["item_id"])
        days, times = log.frame["day"].to_numpy(), log.frame["time"].to_numpy()
        order = np.lexsort((times, users))
        users, items, days, times = users[order], items[order], days[order], times[order]
        repeats = _count_repeats(users, items, times)
        notes = log.notes if repeats == 0 else (*log.notes, f"exact duplicate rows, kept: {repeats:,}")
        return cls(users, items, days, times, user_ids, item_ids, notes)


def _rows(ids: pl.Series) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The row of each id [n] in the sorted distinct ids, and these."""
    distinct = ids.unique().sort()
    rows = distinct.search_sorted(ids).cast(pl.Int32)
    return rows.to_numpy(), distinct.to_numpy()


def _count_repeats(users: NDArray[np.int32], items: NDArray[np.int32], times: NDArray[np.int64]) -> int:
    """How many plays [n], sorted by user and time, equal an earlier one in user, item and time."""
    ties = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.append(ties, False) | np.append(False, ties)
    plays = pl.DataFrame({"user": users[tied], "item": items[tied], "time": times[tied]})
    return plays.height - plays.n_unique()
