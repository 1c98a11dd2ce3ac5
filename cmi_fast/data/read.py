"""Read a log file, lazily with polars, every failure as one InputError."""

from __future__ import annotations

import zlib
from pathlib import Path

import polars as pl

from cmi_fast.data import formats
from cmi_fast.data.frames import scan_npz
from cmi_fast.data.log import Log, extract
from cmi_fast.data.options import ReadOptions
from cmi_fast.data.plays import UNREADABLE, Source, one_line
from cmi_fast.errors import InputError


def read_log(path: Path, options: ReadOptions) -> Log:
    """The plays of the log at ``path`` (:data:`formats.KINDS`).

    Only the columns that the layout and the filters need are read. Raises InputError for whatever is wrong
    with the file, its columns, its values or the options.
    """
    check_file(path)
    kind = formats.kind_of(path)
    try:
        with formats.readable(path) as opened:
            if kind == ".parquet":
                return extract(formats.scan_parquet(opened), Source(str(path)), options)
            if kind == ".npz":
                return extract(scan_npz(opened, str(path)), Source(str(path), unit="entry"), options)
            assert kind is not None  # check_file
            # Column types are guessed from the first rows; where a later row does not fit them, from all rows.
            try:
                return extract(*formats.scan_text(opened, kind, str(path), all_rows=False), options)
            except pl.exceptions.ComputeError:
                return extract(*formats.scan_text(opened, kind, str(path), all_rows=True), options)
    except (*UNREADABLE, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error


def check_file(path: Path) -> None:
    """InputError where ``path`` is no file of a known kind with something in it."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory, expected a file: {formats.KINDS}")
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
    if formats.kind_of(path) is None:
        raise InputError(f"{path}: unknown kind of file, expected {formats.KINDS}")
