"""Encoded logs on disk: arrays that later runs map into memory instead of reading the log again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl

from cmi_fast.data.encode import EncodedPlays
from cmi_fast.data.options import ReadOptions
from cmi_fast.data.plays import UNREADABLE

LEAST_BYTES = 2**25  # smaller logs are read as quickly
FORMAT = 1  # to be raised whenever the same log and options come to other arrays
ARRAYS = {"users": np.int32, "items": np.int32, "days": np.int32, "times": np.int64}

Notes = tuple[str, ...]


def folder() -> Path | None:
    """Where encoded logs are kept: ``$CMI_FAST_CACHE`` (empty: nowhere), else in the user's folder for caches."""
    chosen = os.environ.get("CMI_FAST_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmi_fast"


def cached(
    path: Path, options: ReadOptions, build: Callable[[], tuple[EncodedPlays, Notes]]
) -> tuple[EncodedPlays, Notes]:
    """What ``build`` makes of the log at ``path``: taken from disk where the same content was read like this before.

    Only large logs are kept. An entry appears whole, by renaming its folder; one that cannot be read is made anew.
    """
    kept = folder()
    if kept is None or path.stat().st_size < LEAST_BYTES:
        return build()
    entry = kept / _key(path, options)
    if entry.is_dir():
        try:
            plays, notes = _load(entry)
            return plays, (*notes, f"taken from {entry}")
        except (*UNREADABLE, ValueError, TypeError):
            shutil.rmtree(entry, ignore_errors=True)
    plays, notes = build()
    try:
        _store(entry, plays, notes)
        return _load(entry)[0], (*notes, f"kept for later runs in {entry}")
    except UNREADABLE as error:
        return plays, (*notes, f"not kept for later runs in {kept} ({error})")


def _key(path: Path, options: ReadOptions) -> str:
    """A digest of the log's content, of how it is read, and of the format of the entry."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    how = [FORMAT, path.suffixes[-2:], options.where, options.positive, sorted(options.columns.items())]
    digest.update(json.dumps([*how, options.time_zone]).encode())
    return digest.hexdigest()[:32]


def _store(entry: Path, plays: EncodedPlays, notes: Notes) -> None:
    temporary = entry.with_name(f".{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(plays, name))
        for name in ("user_ids", "item_ids"):
            pl.DataFrame({name: getattr(plays, name)}).write_parquet(temporary / f"{name}.parquet")
        (temporary / "notes.json").write_text(json.dumps(notes), encoding="utf-8")
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(entry: Path) -> tuple[EncodedPlays, Notes]:
    notes = json.loads((entry / "notes.json").read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {}
    for name, dtype in ARRAYS.items():
        array = np.asarray(np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        if array.dtype != dtype or array.ndim != 1 or len(array) != len(arrays.get("users", array)):
            raise ValueError(f"{entry}: {name} is no array of plays")
        arrays[name] = array
    ids = {name: pl.read_parquet(entry / f"{name}.parquet")[name].to_numpy() for name in ("user_ids", "item_ids")}
    return EncodedPlays(**arrays, **ids), tuple(notes)
