"""Atomic writing: the whole file or the old one, and nothing left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError


def test_success_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.suffix == ".parquet"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("written", [True, False])
def test_failure_keeps_the_old_file_and_removes_the_temporary_one(tmp_path: Path, written: bool) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as temporary:
        if written:
            temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_accepts_strings_and_creates_new_files(tmp_path: Path) -> None:
    with atomic_path(str(tmp_path / "new")) as temporary:
        temporary.write_bytes(b"1")
    assert (tmp_path / "new").read_bytes() == b"1"


def test_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"), atomic_path(tmp_path / "nowhere" / "out.txt"):
        pytest.fail("the block must not run")


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="found a folder"), atomic_path(tmp_path / "folder"):
        pytest.fail("the block must not run")
