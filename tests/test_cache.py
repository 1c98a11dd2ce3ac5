"""Encoded logs on disk: reused, never half-written, never trusted when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cmi_fast import Interactions
from cmi_fast.data import cache, interactions
from cmi_fast.data.simulate import simulate


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMI_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_BYTES", 1)
    simulate(users=30, items=40, days=4)[0].write_parquet(tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def entries(log: Path) -> list[Path]:
    return sorted((log.parent / "cache").iterdir())


def equal(first: Interactions, second: Interactions) -> bool:
    names = ("users", "items", "days", "times", "user_ids", "item_ids")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def test_the_second_reading_is_from_disk(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Interactions.from_frame(pl.read_parquet(log))
    first = Interactions.read(log)
    (entry,) = entries(log)
    assert first.notes == (*fresh.notes, f"kept for later runs in {entry}")
    monkeypatch.setattr(interactions, "read_log", lambda *_: pytest.fail("must not be read again"))
    second = Interactions.read(log)
    assert second.notes == (*fresh.notes, f"taken from {entry}")
    assert equal(first, fresh) and equal(second, fresh)
    assert not second.items.flags.writeable and second.items.base is not None
    assert all(
        np.array_equal(a.items, b.items) for a, b in zip(second.split().parts(), fresh.split().parts(), strict=True)
    )


def test_other_content_or_options_are_other_entries(log: Path) -> None:
    Interactions.read(log)
    for options in ({"where": "day > 0"}, {"time_zone": "Asia/Shanghai"}, {"columns": {"timestamp": "timestamp"}}):
        Interactions.read(log, **options)
    assert len(entries(log)) == 4
    frame = pl.read_parquet(log)
    frame.head(frame.height - 1).write_parquet(log)
    assert len(Interactions.read(log).users) == frame.height - 1
    assert len(entries(log)) == 5


@pytest.mark.parametrize("damage", ["truncated", "type", "pickle", "missing", "notes", "ids"])
def test_damaged_entries_are_made_anew(log: Path, damage: str) -> None:
    fresh = Interactions.from_frame(pl.read_parquet(log))
    Interactions.read(log)
    (entry,) = entries(log)
    if damage == "truncated":
        (entry / "days.npy").write_bytes((entry / "days.npy").read_bytes()[:-5])
    elif damage == "type":
        np.save(entry / "days.npy", np.zeros(3))
    elif damage == "pickle":
        np.save(entry / "days.npy", np.array([object()]), allow_pickle=True)
    elif damage == "missing":
        (entry / "days.npy").unlink()
    elif damage == "notes":
        (entry / "notes.json").write_text("{")
    else:
        (entry / "item_ids.parquet").write_bytes(b"")
    assert equal(Interactions.read(log), fresh)
    assert equal(Interactions.read(log), fresh) and Interactions.read(log).notes[-1].startswith("taken from")
    assert entries(log) == [entry]


def test_an_interrupted_write_leaves_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        Interactions.read(log)
    assert entries(log) == []


def test_a_cache_that_cannot_be_written_is_said_and_no_failure(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (log.parent / "cache").write_text("a file")
    assert "not kept for later runs" in Interactions.read(log).notes[-1]
    monkeypatch.setenv("CMI_FAST_CACHE", "")
    assert len(Interactions.read(log).notes) == 1


def test_small_logs_are_not_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LEAST_BYTES", log.stat().st_size + 1)
    Interactions.read(log)
    assert not (log.parent / "cache").exists()


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMI_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.folder() == Path("/somewhere/cmi_fast")
