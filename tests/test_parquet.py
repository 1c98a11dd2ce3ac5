"""Parquet files whose pages are damaged: an error of one line where polars would abort the process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmi_fast import Interactions
from cmi_fast.data.parquet import check_pages, read_parquet
from cmi_fast.errors import InputError

FRAME = pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "day": [1, 2, 3]})


def first_value_count(content: bytes) -> int:
    """Where the first page's header says how many values there are: the number 3, zigzag, is the byte 6."""
    file = io.BytesIO(content)
    start = 4
    place = content.index(b"\x15\x06", start)
    check_pages(file)
    return place + 1


def damaged(value: int) -> bytes:
    """A log whose first page says it has another number of values (zigzag, one byte)."""
    file = io.BytesIO()
    FRAME.write_parquet(file)
    content = bytearray(file.getvalue())
    content[first_value_count(bytes(content))] = value
    return bytes(content)


@pytest.mark.parametrize("value", [1, 5, 125])
def test_a_page_of_a_negative_number_of_values(tmp_path: Path, value: int) -> None:
    """polars 2.1 would end the process: memory allocation of 2305843009213693952 bytes failed."""
    path = tmp_path / "log.parquet"
    path.write_bytes(damaged(value))
    with pytest.raises(InputError, match=r"log\.parquet: cannot be read: damaged page of column chunk 0: -\d+ of 3"):
        Interactions.read(path)
    with pytest.raises(OSError, match="damaged page"):
        read_parquet(path.read_bytes())


def test_a_page_of_more_values_than_its_column(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="damaged page of column chunk 0: 60 of 3 values"):
        check_pages(io.BytesIO(damaged(120)))


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    count = 30_000
    return pa.table(
        {
            "user_id": rng.integers(0, 2**60, count),
            "item_id": [f"item {number}" for number in rng.integers(0, 500, count)],
            "day": pa.array(np.sort(rng.integers(0, 9, count)), mask=rng.random(count) < 0.1),
            "history": [list(range(number % 5)) if number % 7 else None for number in range(count)],
            "likes": rng.random(count) < 0.5,
            "nothing": pa.nulls(count, pa.int32()),
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "compression": "none"},
        {"compression": "zstd", "data_page_size": 1000, "row_group_size": 7000, "write_page_index": True},
        {"compression": "gzip", "data_page_version": "2.0", "data_page_size": 500, "dictionary_pagesize_limit": 2000},
        {"write_statistics": True, "store_schema": False, "version": "1.0"},
    ],
)
def test_good_files_of_pyarrow_pass(options: dict[str, Any]) -> None:
    file = io.BytesIO()
    pq.write_table(table(), file, **options)
    assert read_parquet(file.getvalue()).equals(pl.DataFrame(table()))


@pytest.mark.parametrize(
    "options", [{}, {"compression": "uncompressed", "data_page_size": 1000}, {"row_group_size": 99}]
)
def test_good_files_of_polars_pass(options: dict[str, Any]) -> None:
    file, frame = io.BytesIO(), pl.DataFrame(table())
    frame.write_parquet(file, **options)
    assert read_parquet(file.getvalue()).equals(frame)


def test_a_long_header() -> None:
    """Statistics hold the smallest and largest value."""
    frame = pl.DataFrame({"item_id": ["x" * 5000, "y" * 90_000]})
    file = io.BytesIO()
    pq.write_table(frame.to_arrow(), file, data_page_version="2.0")
    assert read_parquet(file.getvalue()).equals(frame)


def test_no_parquet_at_all_is_left_to_polars() -> None:
    for content in (b"", b"PAR1", b"PAR1" * 4, bytes(100), b"PAR1" + bytes(20) + b"\x0a\x00\x00\x00PAR1"):
        check_pages(io.BytesIO(content))
        with pytest.raises((pl.exceptions.PolarsError, OSError)):
            pl.read_parquet(content)
