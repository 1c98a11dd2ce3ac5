"""When plays happened: the day that splits a log and the time that orders it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from cmi_fast.data.plays import Plays

EPOCH = datetime.date(1970, 1, 1)
INT32_LIMIT = 2**31
MICROSECONDS_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Unit:
    """A unit of timestamps, told by its magnitude: ``first`` and ``end`` bound the years 1973 to 2286."""

    name: str
    per_day: int
    first: int
    end: int

    def holds(self, value: pl.Expr) -> pl.Expr:
        """Whether a number is a time in this unit."""
        return value.is_between(self.first, self.end, closed="left")


SECONDS = Unit("seconds", 86_400, 10**8, 10**10)
MILLISECONDS = Unit("milliseconds", 86_400_000, 10**11, 10**13)


def unit_of(plays: Plays, column: str) -> Unit:
    """The unit of the timestamps in a column; InputError where they are no times, or of two units."""
    expected = "seconds or milliseconds since 1970"
    value = _require_numbers(plays, column, lambda v: SECONDS.holds(v) | MILLISECONDS.holds(v), expected)
    unit = SECONDS if plays.frame.head(1).select(SECONDS.holds(value)).item() else MILLISECONDS
    plays.require(column, unit.holds(value), f"{unit.name} as in the first row")
    return unit


def times(plays: Plays, column: str, unit: Unit) -> pl.Series:
    """Timestamps as Int64: integers as they are, others in microseconds, to keep the order of fractions."""
    values = pl.col(column)
    if not plays.frame.schema[column].is_integer():
        values = (values.cast(pl.Float64) * (MICROSECONDS_PER_DAY // unit.per_day)).round()
    return plays.column(values.cast(pl.Int64))


def utc_days(plays: Plays, column: str, unit: Unit) -> tuple[pl.Series, datetime.date]:
    """The UTC day of each timestamp as Int32, counted from the first; and the date of that first day."""
    return _from_first(plays.column((pl.col(column) // unit.per_day).cast(pl.Int32)))


def calendar_days(plays: Plays, column: str) -> tuple[pl.Series, datetime.date]:
    """Dates written YYYYMMDD as days (Int32) counted from the first; and the date of that first day."""
    date = pl.col(column).cast(pl.String, strict=False).str.to_date("%Y%m%d", strict=False)
    plays.require(column, date >= EPOCH, "a date YYYYMMDD")
    return _from_first(plays.column(date.cast(pl.Int32)))


def whole_days(plays: Plays, column: str) -> pl.Series:
    """A column of day numbers as Int32; InputError where they are no whole numbers of 32 bits."""

    def whole(value: pl.Expr) -> pl.Expr:
        return (value == value.round()) & value.is_between(-INT32_LIMIT, INT32_LIMIT, closed="left")

    _require_numbers(plays, column, whole, "a whole number of 32 bits")
    return plays.column(pl.col(column).cast(pl.Int32))


def _require_numbers(plays: Plays, column: str, good: Callable[[pl.Expr], pl.Expr], expected: str) -> pl.Expr:
    """The values of a column as Float64; InputError where one is not ``good``, or the column is text."""
    dtype = plays.frame.schema[column]
    value = pl.col(column).cast(pl.Float64, strict=False)
    if dtype.is_numeric() or isinstance(dtype, (pl.String, pl.Null)):
        plays.require(column, good(value), expected)
    if not dtype.is_numeric():
        raise plays.wrong_type(column, f"numbers ({expected})")
    return value


def _from_first(days: pl.Series) -> tuple[pl.Series, datetime.date]:
    first = int(days.to_numpy().min())
    return days - first, EPOCH + datetime.timedelta(days=first)
