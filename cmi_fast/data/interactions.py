"""An encoded log: plays as integer rows of users and items, in the order in which each user played them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.cache import cached
from cmi_fast.data.encode import EncodedPlays, count_repeats, encode
from cmi_fast.data.frames import to_lazy
from cmi_fast.data.histories import Histories
from cmi_fast.data.log import Log, extract
from cmi_fast.data.options import ReadOptions
from cmi_fast.data.plays import UNREADABLE, Source, one_line
from cmi_fast.data.read import check_file, read_log
from cmi_fast.data.split import Split, split
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
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        where: str | None = None,
        positive: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        time_zone: str = "UTC",
    ) -> Interactions:
        """Read a log: Parquet, CSV, TSV, RecBole's .inter, MovieLens' .dat and .data (each also with .gz), or .npz.

        The layout is recognised by its columns (docs/layouts.md): ``user_id``, ``item_id`` and ``day``,
        ``timestamp`` or ``datetime``, or those of KuaiRand, KuaiRec, WeChat, MovieLens, MicroLens or RecBole.
        A log of more than 32 MB is kept in encoded form for the next time, under ``$CMI_FAST_CACHE`` or
        ``~/.cache/cmi_fast``, and its arrays are mapped into memory from there.

        Args:
            where: an SQL condition on the columns of the file, e.g. ``"long_view = 1 and play_time_ms > 3000"``.
            positive: columns of which at least one must be above 0, such as ``["like", "forward"]``.
            columns: which column is what, where its name does not say: ``{"user_id": "uid", "timestamp": "t"}``;
                roles are user_id, item_id, day, date, timestamp and datetime.
            time_zone: whose calendar days split the log, where there is no column of days: ``"Asia/Shanghai"``.

        Raises:
            InputError: for a file, column, value or option that cannot be used.
        """
        path = Path(path)
        options = _options(where, positive, columns, time_zone)
        check_file(path)
        return cls._make(*cached(path, options, lambda: _encode(read_log(path, options))))

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        source: str = "frame",
        where: str | None = None,
        positive: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        time_zone: str = "UTC",
    ) -> Interactions:
        """As :meth:`read`, from a frame of polars, pandas, pyarrow or whatever speaks Arrow, or a scipy sparse matrix.

        A matrix [users, items] has a play for each stored value but 0, all on day 0, in the order of a row's entries.
        ``source`` is what error messages call the frame; its rows count from 0.
        """
        options = _options(where, positive, columns, time_zone)
        try:
            return cls._make(*_encode(extract(to_lazy(frame), Source(source), options)))
        except UNREADABLE as error:
            raise InputError(f"{source}: cannot be read: {one_line(error)}") from error

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def split(self, by: str = "day") -> Split:
        """Train, valid and test.

        Args:
            by: ``"day"``: the last day but one is valid, the last is test (the paper's). ``"last"``: the last play but
                one and the last of each user with three or more. ``"ratio"`` or ``"ratio:0.7,0.1,0.2"``: that share of
                each user's plays, in their order; without numbers 0.8, 0.1, 0.1.

        Raises:
            InputError: too few days or plays for it, or another ``by``.
        """
        return split(self, by)

    def histories(self) -> Histories:
        """The plays of each user, in order."""
        users = np.arange(self.num_users + 1, dtype=np.int32)
        return Histories(np.searchsorted(self.users, users), self.items)

    def subset(self, chosen: NDArray[np.bool_]) -> Interactions:
        """The chosen plays [n], with the ids of all."""
        plays = {name: getattr(self, name)[chosen] for name in ("users", "items", "days", "times")}
        return replace(self, **plays)

    @classmethod
    def _make(cls, plays: EncodedPlays, notes: tuple[str, ...]) -> Interactions:
        return cls(plays.users, plays.items, plays.days, plays.times, plays.user_ids, plays.item_ids, notes)


def _options(
    where: str | None, positive: Sequence[str], columns: Mapping[str, str] | None, time_zone: str
) -> ReadOptions:
    if isinstance(positive, str):
        raise TypeError(f"positive must be a list of columns, got the text {positive!r}")
    return ReadOptions(where, tuple(positive), dict(columns or {}), time_zone)


def _encode(log: Log) -> tuple[EncodedPlays, tuple[str, ...]]:
    plays = encode(log.frame)
    repeats = count_repeats(plays)
    return plays, log.notes if repeats == 0 else (*log.notes, f"exact duplicate rows, kept: {repeats:,}")
