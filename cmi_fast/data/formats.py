"""The kinds of files that a log may be in, each opened as a lazy frame."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from cmi_fast.data.parquet import check_file_pages, check_pages
from cmi_fast.data.plays import Source
from cmi_fast.errors import InputError

KINDS = ".parquet, .csv, .tsv, .inter, .dat or .data (also with .gz), or .npz"
SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::"}
# MovieLens' older files have no header.
HEADLESS = (".data", ".dat")
MOVIELENS = ("userId", "movieId", "rating", "timestamp")
SAMPLED_ROWS = 10_000


def kind_of(path: Path) -> str | None:
    """The suffix that tells how to read ``path``, without .gz; None for one not known."""
    name = path.name.lower().removesuffix(".gz")
    kinds = (".parquet", ".npz", *SEPARATORS)
    return next((kind for kind in kinds if name.endswith(kind)), None)


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """``path`` by a name that polars can open: its own, or, where that is no UTF-8, that of a link to it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "log" + "".join(s for s in path.suffixes[-2:] if s.isascii()))
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def scan_parquet(path: Path) -> pl.LazyFrame:
    if path.name.lower().endswith(".gz"):
        content = gzip.decompress(path.read_bytes())
        check_pages(io.BytesIO(content))
        return pl.scan_parquet(io.BytesIO(content))
    check_file_pages(path)
    return pl.scan_parquet(path, glob=False)


def scan_text(path: Path, kind: str, name: str, all_rows: bool) -> tuple[pl.LazyFrame, Source]:
    """A text file, types guessed from the first rows or from ``all_rows``; the log is called ``name``."""
    separator = SEPARATORS[kind]
    if kind not in HEADLESS:
        _require_rectangular(path, separator, name)
        rows = None if all_rows else SAMPLED_ROWS
        frame = pl.scan_csv(path, separator=separator, infer_schema_length=rows, glob=False)
        return frame, Source(name, unit="line", first=2)
    return _scan_movielens(path, separator, name), Source(name, unit="line", first=1)


def _scan_movielens(path: Path, separator: str, name: str) -> pl.LazyFrame:
    fields = pl.col("line").str.split(separator)
    lines = _lines(path)
    width = len(MOVIELENS)
    bad = lines.with_row_index("number", offset=1).filter(fields.list.len() != width).head(1)
    for number, count in bad.select("number", fields.list.len().alias("count")).collect().rows():
        raise InputError(f"{name}: line {number}: found {count} fields, expected {width}: {', '.join(MOVIELENS)}")
    columns = (fields.list.get(place).alias(column) for place, column in enumerate(MOVIELENS))
    return lines.select(columns).with_columns(
        pl.col("userId", "movieId", "timestamp").cast(pl.Int64, strict=False),
        pl.col("rating").cast(pl.Float64, strict=False),
    )


def _lines(path: Path) -> pl.LazyFrame:
    return pl.scan_csv(
        path, has_header=False, schema={"line": pl.String}, separator="\x1f", quote_char=None, glob=False
    )


def _require_rectangular(path: Path, separator: str, name: str) -> None:
    """InputError naming the first row with too many or too few fields.

    polars, reading some columns only, does not look at the others, and fills short rows with nulls.
    """
    found = pl.col("line").str.count_matches(separator, literal=True)
    counts = _lines(path).select(found.min().alias("fewest"), found.max().alias("most"))
    fewest, most = counts.collect(engine="streaming").row(0)
    if fewest == most:
        return
    # Separators inside quotes are none: only now is it worth parsing every row in Python.
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if gzipped else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=separator)
        try:
            width = len(next(rows))
            for row in rows:
                if len(row) != width:
                    problem = f"found {len(row)} fields, expected {width}"
                    raise InputError(f"{name}: line {rows.line_num}: {problem}")
        except csv.Error as error:
            raise InputError(f"{name}: line {rows.line_num}: {error}") from error
