"""A look at the page headers of a Parquet file before polars reads it.

polars 2.1 aborts the whole process where a damaged header says that a page has a negative or a huge number of values.
Headers are Thrift structs in the compact protocol (parquet-format, README and parquet.thrift).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

MAGIC = b"PAR1"
FIRST_READ = 256  # most headers are shorter
LONGEST_HEADER = 2**20  # statistics may hold values
DEEPEST = 16

# Field numbers in parquet.thrift.
ROW_GROUPS, COLUMNS, META_DATA = 4, 1, 3
CHUNK_VALUES, CHUNK_BYTES, DATA_OFFSET, DICTIONARY_OFFSET = 5, 7, 9, 11
UNCOMPRESSED, COMPRESSED, DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 2, 3, 5, 7, 8
PAGE_VALUES = 1


def read_parquet(content: bytes) -> pl.DataFrame:
    """``polars.read_parquet``. Raises OSError for pages whose headers cannot be right."""
    check_pages(io.BytesIO(content))
    return pl.read_parquet(content)


def check_file_pages(path: Path) -> None:
    with path.open("rb") as file:
        check_pages(file)


def check_pages(file: BinaryIO) -> None:
    """Raises OSError where a page header of a Parquet file is damaged, or says more than its column chunk holds.

    A file without a footer to read is left to polars, which says what is wrong with it.
    """
    for number, (start, size, values) in enumerate(_chunks(file)):
        left = values
        place = start
        while left > 0 and place < start + size:
            header, length = _header(file, place, start + size)
            data = DATA_PAGE if DATA_PAGE in header else DATA_PAGE_V2
            count = _number(header.get(data, header.get(DICTIONARY_PAGE, {PAGE_VALUES: 0})), PAGE_VALUES)
            packed, unpacked = _number(header, COMPRESSED), _number(header, UNCOMPRESSED)
            if not (0 <= count <= values and packed >= 0 and unpacked >= 0 and place + length + packed <= start + size):
                raise OSError(
                    f"damaged page of column chunk {number}: {count} of {values} values in {packed} bytes at {place}"
                )
            left -= count if data in header else 0
            place += length + packed


def _number(struct: Any, field: int) -> int:
    """A field that must be a number; -1 where it is not there, or something else."""
    value = struct.get(field, -1) if isinstance(struct, dict) else -1
    return value if isinstance(value, int) else -1


def _chunks(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Start, size in bytes and number of values of each column chunk; none where the footer says nothing sensible."""
    end = file.seek(0, os.SEEK_END)
    if end < 12:
        return
    file.seek(end - 8)
    size, magic = struct.unpack("<i4s", file.read(8))
    if magic != MAGIC or not 0 < size <= end - 12:
        return
    file.seek(end - 8 - size)
    try:
        footer = _Thrift(file.read(size)).struct()
        for group in footer[ROW_GROUPS]:
            for column in group[COLUMNS]:
                data = column[META_DATA]
                start = min(data[DATA_OFFSET], data.get(DICTIONARY_OFFSET) or data[DATA_OFFSET])
                if not (start >= 0 and data[CHUNK_BYTES] >= 0 and start + data[CHUNK_BYTES] <= end):
                    return
                yield start, data[CHUNK_BYTES], data[CHUNK_VALUES]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return


def _header(file: BinaryIO, place: int, end: int) -> tuple[dict[int, Any], int]:
    """The page header at ``place``, and its length."""
    size = FIRST_READ
    while True:
        file.seek(place)
        content = file.read(min(size, end - place))
        thrift = _Thrift(content)
        try:
            return thrift.struct(), thrift.place
        except IndexError:
            if len(content) < size or size >= LONGEST_HEADER:
                raise OSError(f"damaged page header at {place}") from None
            size *= 16
        except ValueError:
            raise OSError(f"damaged page header at {place}") from None


class _Thrift:
    """Reads structs as dictionaries by field number. IndexError at the end of the content, ValueError for nonsense."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > DEEPEST:
            raise ValueError("too deep")
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            step = kind >> 4
            number = number + step if step else self._signed()
            fields[number] = self._value(kind & 15, depth)
        return fields

    def _value(self, kind: int, depth: int, in_list: bool = False) -> Any:
        if kind in (1, 2):  # a truth value: in the field's type itself, in lists a byte
            return self._byte() == 1 if in_list else kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._unsigned()
            return self._skip(length)
        if kind in (9, 10):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._unsigned()
            if length > len(self.content) - self.place:  # every element is at least a byte long
                raise IndexError
            return [self._value(head & 15, depth + 1, in_list=True) for _ in range(length)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"type {kind}")

    def _byte(self) -> int:
        value = self.content[self.place]
        self.place += 1
        return value

    def _skip(self, length: int) -> bytes:
        if length > len(self.content) - self.place:
            raise IndexError
        self.place += length
        return self.content[self.place - length : self.place]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 70:
                raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
