"""The plays read from a log, and error messages that say where in the log a bad one stands."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

import polars as pl

from cmi_fast.errors import InputError

# What polars raises for data it cannot read; PanicException does not derive from Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)

INDEX = "cmi_fast row index"


@dataclass(frozen=True)
class Source:
    """What messages call a log, what they call its rows, and the number of its first row."""

    name: str
    unit: str = "row"
    first: int = 0


@dataclass(frozen=True)
class Plays:
    """The rows of ``log`` that pass ``keep``, of which ``frame`` holds the needed columns, in file order."""

    frame: pl.DataFrame
    log: pl.LazyFrame
    keep: pl.Expr
    source: Source

    def require(self, column: str, good: pl.Expr, expected: str) -> None:
        """InputError naming the first row where ``good`` is false or null, if there is one."""
        bad = ~good.fill_null(False)
        count = self.frame.lazy().select(bad.sum()).collect(engine="streaming").item()
        if count == 0:
            return
        rows = self.log.with_row_index(INDEX, offset=self.source.first).filter(self.keep).filter(bad)
        row, value = rows.select(INDEX, column).head(1).collect().row(0)
        found = "null" if value is None else reprlib.repr(value)
        place = f"{self.source.name}: {self.source.unit} {row}, column {column}"
        extent = "1 bad row" if count == 1 else f"first of {count:,} bad rows"
        raise InputError(f"{place}: found {found}, expected {expected} ({extent})")

    def column(self, values: pl.Expr) -> pl.Series:
        """An expression on the columns of ``frame``, computed."""
        return self.frame.select(values).to_series()

    def wrong_type(self, column: str, expected: str) -> InputError:
        """The error for a column of the wrong type; the caller raises it."""
        found = self.frame.schema[column]
        return InputError(f"{self.source.name}: column {column}: found type {found}, expected {expected}")


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
