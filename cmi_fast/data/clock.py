"""When plays happened: the day that splits a log and the time that orders it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from cmi_fast.data.layouts import Layout
from cmi_fast.data.plays import Plays

EPOCH = datetime.date(1970, 1, 1)
LAST = datetime.date(2200, 1, 1)
INT32_LIMIT = 2**31
MICROSECONDS_PER_DAY = 86_400_000_000
# Of datetimes as text; %+ has a zone: Z or an offset.
FORMATS = (
    *(f"%Y-%m-%d{between}{time}" for between in " T" for time in ("%H:%M:%S%.f", "%H:%M")),
    "%+",
    "%Y-%m-%d",
)


@dataclass(frozen=True)
class Unit:
    """A unit of timestamps, told by its magnitude: ``first`` and ``end`` bound the years 1973 to 2286."""

    name: str
    code: str
    per_day: int
    first: int
    end: int

    def holds(self, value: pl.Expr) -> pl.Expr:
        """Whether a number is a time in this unit."""
        return value.is_between(self.first, self.end, closed="left")


SECONDS = Unit("seconds", "s", 86_400, 10**8, 10**10)
MILLISECONDS = Unit("milliseconds", "ms", 86_400_000, 10**11, 10**13)


def days_and_times(plays: Plays, layout: Layout, zone: str) -> tuple[pl.Series, pl.Series, str]:
    """The day (Int32) and the time (Int64) of each play, and how they were found.

    A day column decides the day as it is; dates and the days of times are counted from the first of the plays
    kept. Without times the day is the time, and the order within a day that of the file.
    """
    timed = _times(plays, layout, zone)
    if layout.day is not None:
        days, whose = whole_days(plays, layout.day), f"{layout.day} splits"
    elif layout.date is not None:
        days, first = _from_first(calendar_days(plays, layout.date))
        whose = f"{layout.date} splits, day 0 is {first}"
    else:
        assert timed is not None  # a layout has days, dates or times
        days, first = _from_first(timed.days)
        whose = f"days are {'UTC days' if zone == 'UTC' else f'days of {zone}'}, day 0 is {first}"
        return days, timed.times, f"{timed.how}; {whose}"
    if timed is None:
        return days, days.cast(pl.Int64), f"{whose}; within a day the order is that of the file"
    return days, timed.times, f"{whose}; {timed.how} orders"


class Timed(NamedTuple):
    """Times (Int64), of which the order matters, their days since 1970 (Int32), and what the column holds."""

    times: pl.Series
    days: pl.Series
    how: str


def _times(plays: Plays, layout: Layout, zone: str) -> Timed | None:
    if layout.timestamp is not None and not plays.frame.schema[layout.timestamp].is_temporal():
        return _timestamps(plays, layout.timestamp, zone)
    column = layout.timestamp or layout.datetime
    return None if column is None else _datetimes(plays, column, zone)


def _timestamps(plays: Plays, column: str, zone: str) -> Timed:
    """Timestamps in seconds or milliseconds."""
    unit = unit_of(plays, column)
    value = pl.col(column)
    if zone == "UTC":
        days = plays.column((value // unit.per_day).cast(pl.Int32))
    else:
        scaled = value.cast(pl.Int64) * 1000 if unit is SECONDS else value.cast(pl.Int64)
        days = plays.column(_day_in(scaled.cast(pl.Datetime("ms", "UTC")), zone))
    if not plays.frame.schema[column].is_integer():  # in microseconds, to keep the order of fractions
        value = (value.cast(pl.Float64) * (MICROSECONDS_PER_DAY // unit.per_day)).round()
    return Timed(plays.column(value.cast(pl.Int64)), days, f"{column} in {unit.name}")


def _datetimes(plays: Plays, column: str, zone: str) -> Timed:
    """Datetimes: text as in ISO 8601, or of a datetime or date type; or timestamps by that name."""
    dtype = plays.frame.schema[column]
    value, expected = pl.col(column), "a date and time such as 2024-05-01 13:00:00 or 2024-05-01T13:00:00+08:00"
    if dtype.is_numeric():
        return _timestamps(plays, column, zone)
    if isinstance(dtype, pl.String):
        value, dtype, expected = _parsed(plays, column, expected)
    elif not isinstance(dtype, (pl.Datetime, pl.Date)):
        raise plays.wrong_type(column, f"datetimes ({expected})")
    aware = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
    value = value.cast(pl.Datetime("us", dtype.time_zone if isinstance(dtype, pl.Datetime) else None))
    plays.require(column, value.dt.date().is_between(EPOCH, LAST, closed="left"), expected)
    days = _day_in(value, zone) if aware else value.dt.date().cast(pl.Int32)
    how = f"{column}, {'with its time zone' if aware else 'taken as local time'},"
    return Timed(plays.column(value.dt.epoch("us")), plays.column(days), how)


def _parsed(plays: Plays, column: str, expected: str) -> tuple[pl.Expr, pl.Datetime, str]:
    """Text as datetimes, all in the format of the first row."""
    first = plays.frame[column].head(1)
    for pattern in FORMATS:
        parsed = first.str.to_datetime(pattern, strict=False, time_unit="us")
        if not parsed.has_nulls():
            value = pl.col(column).str.to_datetime(pattern, strict=False, time_unit="us")
            dtype = pl.Datetime("us", "UTC" if pattern == "%+" else None)
            return value, dtype, f"{expected}, written as in the first row ({first.item()})"
    plays.require(column, pl.lit(False), expected)
    raise AssertionError("unreachable: there is a first row")


def _day_in(instant: pl.Expr, zone: str) -> pl.Expr:
    return instant.dt.convert_time_zone(zone).dt.date().cast(pl.Int32)


def unit_of(plays: Plays, column: str) -> Unit:
    """The unit of the timestamps in a column; InputError where they are no times, or of two units."""
    expected = "seconds or milliseconds since 1970"
    value = _require_numbers(plays, column, lambda v: SECONDS.holds(v) | MILLISECONDS.holds(v), expected)
    unit = SECONDS if plays.frame.head(1).select(SECONDS.holds(value)).item() else MILLISECONDS
    plays.require(column, unit.holds(value), f"{unit.name} as in the first row")
    return unit


def calendar_days(plays: Plays, column: str) -> pl.Series:
    """Dates, or numbers or text YYYYMMDD, as days since 1970 (Int32)."""
    dtype = plays.frame.schema[column]
    value = pl.col(column)
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        date = value.dt.date()
    else:
        date = (value if dtype == pl.String else value.cast(pl.Int64, strict=False)).cast(pl.String, strict=False)
        date = date.str.to_date("%Y%m%d", strict=False)
    plays.require(column, date.is_between(EPOCH, LAST, closed="left"), "a date YYYYMMDD")
    return plays.column(date.cast(pl.Int32))


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
