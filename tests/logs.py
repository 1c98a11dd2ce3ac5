"""Small logs, and the files they are written to, for the tests of reading."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl

DAY = 86_400
START = 1_650_067_200  # 2022-04-16 00:00 UTC
LOG = pl.DataFrame(
    {
        "user_id": [7, 0, 7, -3, 0, 7],
        "item_id": [50, 0, 40, 50, 40, 50],
        "timestamp": [START + DAY * day + 5 for day in (0, 0, 1, 1, 2, 2)],
        "day": [3, 3, 4, 4, 5, 5],
        "long_view": [1, 1, 1, 0, 1, 1],
    }
)


def write(frame: pl.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    else:
        frame.write_csv(path)
    return path


def write_text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
