"""Read a log file: Parquet or CSV (also gzipped), lazily with polars, every failure as one InputError."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import polars as pl

from cmi_fast.data.log import Log, extract
from cmi_fast.data.plays import UNREADABLE, Source, one_line
from cmi_fast.errors import InputError

SAMPLED_ROWS = 10_000


def read_log(path: str | Path, where: str | None = None) -> Log:
    """The plays of the log at ``path`` (.parquet, .csv, .csv.gz) that pass the SQL condition ``where``.

    Only the columns that the layout and the filter need are read. Raises InputError for whatever is wrong
    with the file, its columns, its values or the filter.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, expected a .parquet, .csv or .csv.gz file")
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        if name.endswith(".parquet"):
            return extract(pl.scan_parquet(path, glob=False), Source(str(path)), where)
        if name.endswith((".csv", ".csv.gz")):
            return _read_csv(path, where)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
    raise InputError(f"{path}: unknown kind of file, expected .parquet, .csv or .csv.gz")


def _read_csv(path: Path, where: str | None) -> Log:
    """Column types are guessed from the first rows; where a later row does not fit them, from all rows."""
    _require_rectangular(path)
    source = Source(str(path), unit="line", first=2)
    try:
        return extract(pl.scan_csv(path, infer_schema_length=SAMPLED_ROWS, glob=False), source, where)
    except pl.exceptions.ComputeError:
        return extract(pl.scan_csv(path, infer_schema_length=None, glob=False), source, where)


def _require_rectangular(path: Path) -> None:
    """InputError naming the first row with too many or too few fields.

    polars, reading some columns only, does not look at the others, and fills short rows with nulls.
    """
    lines = pl.scan_csv(
        path, has_header=False, schema={"line": pl.String}, separator="\x1f", quote_char=None, glob=False
    )
    commas = pl.col("line").str.count_matches(",", literal=True)
    counts = lines.select(commas.min().alias("fewest"), commas.max().alias("most"))
    fewest, most = counts.collect(engine="streaming").row(0)
    if fewest == most:
        return
    # Commas inside quotes are no separators: only now is it worth parsing every row in Python.
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if gzipped else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text)
        try:
            width = len(next(rows))
            for row in rows:
                if len(row) != width:
                    problem = f"found {len(row)} fields, expected {width}"
                    raise InputError(f"{path}: line {rows.line_num}: {problem}")
        except csv.Error as error:
            raise InputError(f"{path}: line {rows.line_num}: {error}") from error
