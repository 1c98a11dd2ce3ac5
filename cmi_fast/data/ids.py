"""Ids as they are given, and the rows they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cmi_fast.data.layouts import listing
from cmi_fast.data.parquet import read_parquet
from cmi_fast.data.plays import UNREADABLE, one_line
from cmi_fast.errors import InputError


def as_ids(values: Iterable[Any], argument: str) -> NDArray[Any]:
    """Ids from a list, an array or a column, as int64 or str objects [n].

    Raises:
        TypeError: they are neither all integers nor all text; ``argument`` is what the message calls them.
    """
    given = values.to_numpy() if hasattr(values, "to_numpy") else values
    try:
        ids = pl.Series(given if isinstance(given, np.ndarray) else list(given))
    except TypeError:
        raise TypeError(f"{argument} must be integers, or text, got a mixture") from None
    if len(ids) == 0:
        return np.empty(0, dtype=np.int64)
    if ids.has_nulls() or not (ids.dtype.is_integer() or ids.dtype == pl.String):
        raise TypeError(f"{argument} must be integers, or text, got {ids.dtype} such as {ids[0]!r}")
    return (ids if ids.dtype == pl.String else ids.cast(pl.Int64)).to_numpy()


def read_user_ids(path: Path, text: bool) -> NDArray[Any]:
    """The distinct users of a file, in its order.

    path: a .txt with one user a line, or a .csv or .parquet with a column ``user_id``.
    text: whether ids are text; else they are integers.

    Raises:
        InputError: the file cannot be read, holds no such column, or other ids.
    """
    try:
        if path.suffix == ".txt":
            lines = path.read_text(encoding="utf-8").splitlines()
            ids = pl.Series([line.strip() for line in lines if line.strip()], dtype=pl.String)
        elif path.suffix in (".csv", ".parquet"):
            content = path.read_bytes()
            frame = read_parquet(content) if path.suffix == ".parquet" else pl.read_csv(content, infer_schema=False)
            if "user_id" not in frame.columns:
                raise InputError(f"{path}: no column user_id, found {listing(frame.columns)}")
            ids = frame["user_id"]
        else:
            raise InputError(f"{path}: unknown kind of file, expected .txt, .csv or .parquet")
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    expected = "text" if text else "integers"
    try:
        cast = ids.cast(pl.String if text else pl.Int64, strict=False)
    except pl.exceptions.PolarsError:
        raise InputError(f"{path}: expected ids that are {expected}, found {ids.dtype}") from None
    if cast.has_nulls():
        place = cast.is_null().arg_true()[0]
        raise InputError(f"{path}: user {place + 1}: found {ids[place]!r}, expected ids that are {expected}")
    return cast.unique(maintain_order=True).to_numpy()


def rows_of(ids: NDArray[Any], known: NDArray[Any], what: str) -> NDArray[np.int64]:
    """The row of each of ``ids`` [n] in the distinct ``known`` [m]; -1 for those that are not there.

    Raises:
        InputError: ``ids`` are text and those known are integers, or the other way round.
    """
    if len(ids) == 0 or len(known) == 0:
        return np.full(len(ids), -1)
    kinds = ["text" if array.dtype == object else "integers" for array in (ids, known)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{what} ids of the log are {kinds[0]}, those that the model knows are {kinds[1]}")
    table = pl.DataFrame({"id": known, "row": np.arange(len(known))})
    joined = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
    return joined["row"].fill_null(-1).to_numpy(writable=True)
