"""What the columns of a log mean: layout recognised, rows filtered, values checked and made canonical."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cmi_fast.data import clock
from cmi_fast.data.plays import UNREADABLE, Plays, Source, one_line
from cmi_fast.errors import InputError

LAYOUTS = "user_id, item_id and day or timestamp; or KuaiRand's user_id, video_id, date, time_ms"
EXACT_FLOATS = 2**53


@dataclass(frozen=True)
class Log:
    """Plays in file order.

    frame: user_id and item_id (Int64 or String), day (Int32), time (Int64, of which only the order matters).
    notes: what was decided while reading, for people.
    """

    frame: pl.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The names of a log's columns. ``calendar``: the day column holds dates as integers YYYYMMDD."""

    user: str
    item: str
    day: str | None
    time: str | None
    calendar: bool = False

    @property
    def columns(self) -> list[str]:
        return [name for name in (self.user, self.item, self.day, self.time) if name is not None]


def extract(log: pl.LazyFrame, source: Source, where: str | None) -> Log:
    """The rows of ``log`` that pass the SQL condition ``where``, checked, in canonical columns.

    Raises InputError; polars' own errors only where the data behind ``log`` cannot be read.
    """
    schema = log.collect_schema()
    layout = recognise(schema.names(), source)
    if log.head(1).collect().is_empty():
        raise InputError(f"{source.name}: no rows")
    keep = pl.lit(True) if where is None else row_filter(where, schema, source)
    frame = log.filter(keep).select(layout.columns).collect()
    if frame.is_empty():
        raise InputError(f"{source.name}: the filter {where!r} keeps no rows")
    plays = Plays(frame, log, keep, source)
    users, items = ids(plays, layout.user), ids(plays, layout.item)
    days, times, note = days_and_times(plays, layout)
    columns = {"user_id": users, "item_id": items, "day": days, "time": times}
    return Log(pl.DataFrame(columns), (note,))


def recognise(columns: Sequence[str], source: Source) -> Layout:
    """The layout that a log with these columns has; InputError where it has none."""
    present = set(columns)
    if {"user_id", "item_id"} <= present and present & {"day", "timestamp"}:
        day, time = (name if name in present else None for name in ("day", "timestamp"))
        return Layout("user_id", "item_id", day, time)
    if {"user_id", "video_id", "date", "time_ms"} <= present:
        return Layout("user_id", "video_id", "date", "time_ms", calendar=True)
    raise InputError(f"{source.name}: missing columns: found {listing(columns) or 'none'}; expected {LAYOUTS}")


def row_filter(where: str, schema: pl.Schema, source: Source) -> pl.Expr:
    """The SQL condition ``where`` as an expression, tried on a log of these columns without rows."""
    try:
        keep = pl.sql_expr(where)
        unknown = [name for name in keep.meta.root_names() if name not in schema]
        if not unknown:
            pl.DataFrame(schema=schema).filter(keep)
            return keep
    except UNREADABLE as error:
        problem = one_line(error)
    else:
        problem = f"no column {unknown[0]}"
    raise InputError(f"filter {where!r}: {problem}; columns of {source.name}: {listing(schema.names())}")


def ids(plays: Plays, column: str) -> pl.Series:
    """The ids of a column as Int64, or as String where they are text or exceed 64 bits."""
    dtype = plays.frame.schema[column]
    text = pl.col(column).cast(pl.String)
    plays.require(column, pl.col(column).is_not_null(), "an id")
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return plays.column(text)
    if not dtype.is_numeric():
        raise plays.wrong_type(column, "integers or strings")
    if not dtype.is_integer():
        exact = (pl.col(column) == pl.col(column).round()) & (pl.col(column).abs() <= EXACT_FLOATS)
        plays.require(column, exact, "an integer or a string")
    integers = plays.column(pl.col(column).cast(pl.Int64, strict=False))
    return plays.column(text) if integers.null_count() else integers


def days_and_times(plays: Plays, layout: Layout) -> tuple[pl.Series, pl.Series, str]:
    """The day (Int32) and the time (Int64) of each play, and how they were found.

    A day column decides the day as it is; calendar dates and UTC days are counted from the first of the
    plays kept. Without timestamps the day is the time, and the order within a day that of the file.
    """
    if layout.time is None:
        days = clock.whole_days(plays, "day")
        return days, days.cast(pl.Int64), "day splits; within a day the order is that of the file"
    unit = clock.unit_of(plays, layout.time)
    times = clock.times(plays, layout.time, unit)
    if layout.day is None:
        days, first = clock.utc_days(plays, layout.time, unit)
        return days, times, f"{layout.time} in {unit.name}; days are UTC days, day 0 is {first}"
    if layout.calendar:
        days, first = clock.calendar_days(plays, layout.day)
        return days, times, f"{layout.day} splits, day 0 is {first}; {layout.time} in {unit.name} orders"
    days = clock.whole_days(plays, layout.day)
    return days, times, f"{layout.day} splits; {layout.time} in {unit.name} orders"


def listing(columns: Sequence[str]) -> str:
    """Column names in one line, however many there are and whatever they hold."""
    shown = ", ".join(name if name.isidentifier() else reprlib.repr(name) for name in columns[:30])
    return shown if len(columns) <= 30 else f"{shown} and {len(columns) - 30} more"
