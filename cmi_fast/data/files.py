"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cmi_fast.errors import InputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` to write to; it replaces ``path`` when the block succeeds.

    When the block raises, the temporary file is removed and ``path`` stays as it was.

    Raises:
        InputError: before the block runs, where the folder is missing or ``path`` is itself a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: found no folder {path.parent}, expected an existing one to write into")
    if path.is_dir():
        raise InputError(f"{path}: found a folder, expected the name of a file to write")
    temporary = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
