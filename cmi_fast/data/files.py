"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import polars as pl

from cmi_fast.data.plays import one_line
from cmi_fast.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` to write to; it replaces ``path`` when the block succeeds.

    When the block raises, the temporary file is removed and ``path`` stays as it was.

    Raises:
        InputError: before the block runs, where the folder is missing or ``path`` is itself a folder; and where
            the block cannot write: no permission, a full disk.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: found no folder {path.parent}, expected an existing one to write into")
    if path.is_dir():
        raise InputError(f"{path}: found a folder, expected the name of a file to write")
    temporary = path.with_name(f".{uuid4().hex}{path.suffix}")  # as remove_leftovers expects
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write .csv, or else Parquet. Through an open file: polars takes no names that are not UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        try:
            frame.write_csv(file) if path.suffix == ".csv" else frame.write_parquet(file)
        except pl.exceptions.PolarsError as error:  # which hides the OSError that caused it
            raise OSError(one_line(error)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that :func:`atomic_path` could not, as its process was killed."""
    for path in folder.iterdir():
        if re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", path.name):
            path.unlink(missing_ok=True)
