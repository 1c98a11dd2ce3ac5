"""Frames of other libraries, and sparse matrices, as lazy frames of polars; none of them is imported unasked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cmi_fast.data.plays import one_line
from cmi_fast.errors import InputError


def to_lazy(frame: Any) -> pl.LazyFrame:
    """A frame of polars, pandas or pyarrow, any other that speaks Arrow, or a scipy sparse matrix.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(frame, (pl.DataFrame, pl.LazyFrame)):
        return frame.lazy()
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(frame):
        return from_sparse(frame)
    if type(frame).__module__.startswith("pandas.") and hasattr(frame, "columns"):
        return pl.from_pandas(frame).lazy()
    if hasattr(frame, "__arrow_c_stream__"):
        converted = pl.DataFrame(frame)
        return converted.lazy()
    expected = "a frame of polars, pandas or pyarrow, or a scipy sparse matrix"
    raise TypeError(f"frame must be {expected}, got {type(frame).__name__}")


def from_sparse(matrix: Any) -> pl.LazyFrame:
    """A play for each stored value but 0 of ``matrix`` [users, items], in the order in which a row stores them."""
    rows = matrix.tocsr()
    users = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    kept = rows.data != 0
    columns = {"user_id": users[kept], "item_id": rows.indices[kept].astype(np.int64)}
    return pl.LazyFrame(columns).with_columns(day=pl.lit(0, pl.Int32))


def scan_npz(path: Path, name: str) -> pl.LazyFrame:
    """A sparse matrix that ``scipy.sparse.save_npz`` wrote."""
    import scipy.sparse

    try:
        matrix = scipy.sparse.load_npz(path)  # numpy loads no pickles unasked
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # conversion would follow bad indices out of bounds
        return from_sparse(matrix)
    except Exception as error:  # of numpy, zipfile, zlib, ...: a damaged file makes them raise nearly anything
        raise InputError(f"{name}: no sparse matrix as scipy.sparse.save_npz writes it ({one_line(error)})") from None
