"""What the columns of a log mean: layout recognised, rows filtered, values checked and made canonical."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from cmi_fast.data import clock
from cmi_fast.data.layouts import listing, named, recognise
from cmi_fast.data.options import ReadOptions
from cmi_fast.data.plays import Plays, Source
from cmi_fast.errors import InputError

EXACT_FLOATS = 2**53


@dataclass(frozen=True)
class Log:
    """Plays in file order.

    frame: user_id and item_id (Int64 or String), day (Int32), time (Int64, of which only the order matters).
    notes: what was decided while reading, for people.
    """

    frame: pl.DataFrame
    notes: tuple[str, ...]


def extract(log: pl.LazyFrame, source: Source, options: ReadOptions) -> Log:
    """The rows of ``log`` that pass the filters, checked, in canonical columns.

    Raises InputError; polars' own errors only where the data behind ``log`` cannot be read.
    """
    log = _without_types(log, source)
    schema = log.collect_schema()
    names = schema.names()
    layout = named(options.columns, names, source) if options.columns else recognise(names, source)
    if log.head(1).collect().is_empty():
        raise InputError(f"{source.name}: no rows")
    keep = options.row_filter(schema, source)
    frame = log.filter(keep).select(layout.columns).collect()
    if frame.is_empty():
        raise InputError(f"{source.name}: the {options.describe()} keeps no rows")
    plays = Plays(frame, log, keep, source)
    users, items = ids(plays, layout.user), ids(plays, layout.item)
    days, times, note = clock.days_and_times(plays, layout, options.time_zone)
    columns = {"user_id": users, "item_id": items, "day": days, "time": times}
    return Log(pl.DataFrame(columns), (note, *_decisions(layout.note, options)))


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


def _decisions(note: str | None, options: ReadOptions) -> list[str]:
    if options.positive:
        return [f"a play is a row with {' or '.join(options.positive)} above 0"]
    return [note] if note is not None and options.where is None else []


def _without_types(log: pl.LazyFrame, source: Source) -> pl.LazyFrame:
    """RecBole's typed header, such as ``user_id:token``, as plain names."""
    names = log.collect_schema().names()
    if not all(":" in name for name in names):
        return log
    plain = [name.rpartition(":")[0] for name in names]
    if len(set(plain)) < len(plain):
        raise InputError(f"{source.name}: column names repeat without their types: {listing(names)}")
    return log.rename(dict(zip(names, plain, strict=True)))
