"""Ids become rows, and plays are put in order: by user, then time, then place in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

TABLE_SPAN = 4  # ids this many times as wide as the log is long are looked up in a table


@dataclass(frozen=True)
class EncodedPlays:
    """Shapes: users, items, days int32 [n] and times int64 [n]; user_ids [U] and item_ids [V], sorted."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    days: NDArray[np.int32]
    times: NDArray[np.int64]
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]


def encode(frame: pl.DataFrame) -> EncodedPlays:
    """Encode ``user_id, item_id, day, time``. ``frame`` is emptied on the way, as its columns are large."""
    users, user_ids = _rows(frame.drop_in_place("user_id"))
    order = _order_by(users, len(user_ids))
    users = np.repeat(np.arange(len(user_ids), dtype=np.int32), np.bincount(users))
    times = frame.drop_in_place("time").to_numpy()[order]
    _sort_by_time(users, times, order)
    items, item_ids = _rows(frame.drop_in_place("item_id"))
    items = items[order]
    days = frame.drop_in_place("day").to_numpy()[order]
    return EncodedPlays(users, items, days, times, user_ids, item_ids)


def count_repeats(plays: EncodedPlays) -> int:
    """How many plays equal an earlier one in user, item and time."""
    users, times = plays.users, plays.times
    tied = np.zeros(len(users), dtype=bool)
    ties = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied[1:] |= ties
    tied[:-1] |= ties
    same = pl.DataFrame({"user": users[tied], "item": plays.items[tied], "time": times[tied]})
    return same.height - same.n_unique()


def _rows(ids: pl.Series) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The row of each id [n] in the sorted distinct ids, and these."""
    if ids.dtype == pl.Int64:
        values = ids.to_numpy()
        least, most = int(values.min()), int(values.max())
        if most - least < TABLE_SPAN * len(values):
            return _rows_by_table(values, least, most)
    distinct = ids.unique().sort()
    table = pl.DataFrame({"id": distinct, "row": np.arange(len(distinct), dtype=np.int32)})
    rows = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")["row"]
    return rows.to_numpy(), distinct.to_numpy()


def _rows_by_table(values: NDArray[np.int64], least: int, most: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    places = values - least if least else values
    present = np.zeros(most - least + 1, dtype=bool)
    present[places] = True
    row_of_place = np.cumsum(present, dtype=np.int32) - 1
    return row_of_place[places], np.flatnonzero(present) + least


def _order_by(users: NDArray[np.int32], num_users: int) -> NDArray[np.int32]:
    """The stable order of ``users`` [n], by counting: a sparse matrix with an entry a play, stored by user."""
    from scipy.sparse import csr_matrix

    count = len(users)
    places = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    return csr_matrix((np.ones(count, dtype=np.int8), (users, places)), shape=(num_users, count)).indices


def _sort_by_time(users: NDArray[np.int32], times: NDArray[np.int64], order: NDArray[np.int32]) -> None:
    """Put the plays of each user in order of time, in place: those of users whose plays are not, which are few
    in a log that was written as it happened."""
    early = np.flatnonzero((times[1:] < times[:-1]) & (users[1:] == users[:-1]))
    if len(early) == 0:
        return
    unordered = np.zeros(int(users[-1]) + 1, dtype=bool)
    unordered[users[early]] = True
    plays = np.flatnonzero(unordered[users])
    sorted_plays = plays[np.lexsort((times[plays], users[plays]))]
    times[plays], order[plays] = times[sorted_plays], order[sorted_plays]
