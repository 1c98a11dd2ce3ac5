"""Files and folders that one may not read or write: one line that names them, exit code 2, nothing left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import SMALL, call

from cmi_fast.data.simulate import simulate

NOBODY = 65534


@pytest.fixture(scope="module")
def trained() -> Iterator[Path]:
    """A log and a run on it, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        frame, _ = simulate(users=60, items=80, days=5, plays_per_user=20)
        frame.write_parquet(folder / "log.parquet")
        frame.write_csv(folder / "log.csv")
        # Whatever is imported late is imported here, by somebody who may read it.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            from cmi_fast import cli

            arguments = ["train", str(folder / "log.parquet"), "--out", str(folder / "run"), *SMALL]
            patch.setattr("sys.argv", ["cmi-fast", *arguments])
            cli.main()
        assert not stop.value.code
        yield folder


@pytest.fixture
def folder(trained: Path) -> Iterator[Path]:
    """A copy of it, where the test runs as somebody who owns nothing and can write nowhere."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        shutil.copytree(trained, copy)
        Path(name).chmod(0o755)
        copy.chmod(0o555)
        (copy / "run").chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        yield copy
        if root:
            os.seteuid(0)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_a_log_that_may_not_be_read(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable(folder / name)
    for command in (["stats", folder / name], ["train", folder / name, "--out", folder / "new"]):
        code, _, err = call(capsys, *command)
        assert code == 2 and err.count("\n") == 1, err
        assert str(folder) in err and "ermission" in err, err


@pytest.mark.parametrize("name", ["config.toml", "model.safetensors"])
def test_a_run_that_may_not_be_read(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable(folder / "run" / name)
    code, _, err = call(capsys, "evaluate", folder / "run")
    assert code == 2 and err.count("\n") == 1, err
    assert name in err and "ermission" in err, err


@pytest.mark.parametrize(
    "command",
    [
        ["train", "log.parquet", "--out", "new", *SMALL],
        ["train", "log.parquet", "--out", "run", "--overwrite", *SMALL],
        ["recommend", "run", "--out", "lists.csv"],
        ["report", "run"],
        ["simulate", "simulated.parquet", "--users", "20", "--items", "20"],
    ],
    ids=lambda command: f"{command[0]}-{command[1]}",
)
def test_a_place_that_may_not_be_written(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = content(folder)
    paths = {"log.parquet", "new", "run", "lists.csv", "simulated.parquet"}
    code, _, err = call(capsys, *(folder / argument if argument in paths else argument for argument in command))
    assert code == 2 and err.count("\n") == 1, err
    assert str(folder) in err and "ermission" in err, err
    assert content(folder) == before


def unreadable(path: Path) -> None:
    """For its owner, too, who runs the test where it is not run by root."""
    euid = os.geteuid()
    if euid == NOBODY:
        os.seteuid(0)
    path.chmod(0)
    os.seteuid(euid)


def content(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
