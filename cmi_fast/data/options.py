"""How a log is to be read: which rows, which columns, whose days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from cmi_fast.data.layouts import listing
from cmi_fast.data.plays import UNREADABLE, Source, one_line
from cmi_fast.errors import InputError


@dataclass(frozen=True)
class ReadOptions:
    """where: an SQL condition on rows. positive: columns of which one must be above 0. columns: the column of a
    role (``user_id``, ``timestamp``, ...). time_zone: whose calendar days split the log."""

    where: str | None = None
    positive: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        problem = f"--time-zone {self.time_zone}: unknown, expected a name such as Asia/Shanghai or UTC"
        if not self.time_zone:
            raise InputError(problem)
        try:
            pl.Series([0]).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(self.time_zone)
        except UNREADABLE:
            raise InputError(problem) from None

    def row_filter(self, schema: pl.Schema, source: Source) -> pl.Expr:
        """The rows to keep, of a log with these columns."""
        keep = pl.lit(True) if self.where is None else _sql(self.where, schema, source)
        if not self.positive:
            return keep
        for column in self.positive:
            if column not in schema:
                raise InputError(f"--positive {column}: no such column; {source.name} has {listing(schema.names())}")
            if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
                raise InputError(f"--positive {column}: expected a column of numbers, found type {schema[column]}")
        return keep & pl.any_horizontal(pl.col(column).cast(pl.Float64) > 0 for column in self.positive)

    def describe(self) -> str:
        """The filters in words, for messages."""
        told = [f"filter {self.where!r}"] if self.where is not None else []
        return " and ".join(told + ([f"--positive {','.join(self.positive)}"] if self.positive else []))


def _sql(where: str, schema: pl.Schema, source: Source) -> pl.Expr:
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
