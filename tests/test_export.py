"""``cmi-fast export``: a faiss index that answers for the model, its recall, and errors in one line."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cmi_fast.data.simulate import write_simulation
from cmi_fast.errors import InputError
from cmi_fast.retrieval import export, top_k
from cmi_fast.retrieval.export import build_index, export_index, index_recall, search_index

try:
    import faiss
except ImportError:
    faiss = None
needs_faiss = pytest.mark.skipif(faiss is None, reason="faiss is not installed")


def cmi_fast(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from cmi_fast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_simulation(folder / "log.parquet", users=150, items=300, days=6, seed=0)
    settings = ["--set", "epochs=1", "--set", "steps_per_epoch=3", "--set", "dim=16", "--set", "batch_size=32"]
    done = cmi_fast("train", folder / "log.parquet", "--out", folder / "run", *settings)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@needs_faiss
def test_export(trained: Path, tmp_path: Path) -> None:
    """What a service does with the files gives the exact scores, in the order of the ids."""
    out = tmp_path / "index"
    done = cmi_fast("export", trained, "--faiss", out, "--index", "Flat")
    assert done.returncode == 0, done.stderr
    assert "Recall@50 against exact retrieval: 1.0000" in done.stdout
    names = {"export.json", "items.faiss", "items.parquet", "user_vectors.npy", "users.parquet"}
    assert {path.name for path in out.iterdir()} == names
    index, users = faiss.read_index(str(out / "items.faiss")), np.load(out / "user_vectors.npy", mmap_mode="r")
    items = pl.read_parquet(out / "items.parquet")["item_id"]
    assert items.equals(pl.read_parquet(trained / "items.parquet")["item_id"])
    assert len(pl.read_parquet(out / "users.parquet")) == len(users) == 150
    vectors = torch.from_numpy(index.reconstruct_n(0, len(items)))
    _, exact = top_k(torch.from_numpy(users.copy()), vectors, 10)
    assert np.array_equal(search_index(index, torch.from_numpy(users.copy()), 10), exact.numpy())
    summary = json.loads((out / "export.json").read_text())
    assert summary["user_vectors"] == list(users.shape) == [150, 8, 17]  # sixteen of the model, and what is in fashion
    assert summary["items"] == [len(items), 17]


@needs_faiss
def test_the_default_index_says_its_recall(trained: Path, tmp_path: Path) -> None:
    done = cmi_fast("export", trained, "--faiss", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "index" / "export.json").read_text())["recall@50"] == 1
    assert "\nFlat: 300 items" in done.stdout  # of so few items it is exact


@needs_faiss
def test_the_default_index_of_many_items_visits_a_part_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "EXACT_ITEMS", 1999)
    items, vectors = torch.randn(2000, 6), torch.randn(7, 2, 6)
    summary = export_index(tmp_path / "many", items, [vectors], (7, 2, 6))
    assert summary["index"] == "IVF51,Flat, nprobe 3"
    assert 0 < summary["recall@50"] < 1
    assert export_index(tmp_path / "few", items[:1999], [vectors], (7, 2, 6))["index"] == "Flat"


@needs_faiss
def test_recall_is_that_of_the_index() -> None:
    """An index that visits one list of two finds what lies in it."""
    items = torch.cat((torch.randn(100, 4) + 9 * torch.eye(4)[0], torch.randn(100, 4) - 9 * torch.eye(4)[0]))
    interests = 5 * torch.eye(4)[0] * torch.tensor([[[1.0], [-1.0]]])
    index = build_index(items, "IVF2,Flat")
    assert index_recall(index, interests, items, 20) == 1
    assert index_recall(index, interests[:, :1], items, 150) == pytest.approx(100 / 150)


@needs_faiss
def test_blocks_of_users_and_an_empty_log(tmp_path: Path) -> None:
    items = torch.randn(500, 6)
    vectors = torch.randn(7, 2, 6)
    export_index(tmp_path / "some", items, iter(vectors.split(3)), (7, 2, 6))
    assert np.array_equal(np.load(tmp_path / "some" / "user_vectors.npy"), vectors.numpy())
    assert export_index(tmp_path / "none", items[:3], [], (0, 2, 6))["recall@50"] is None


@needs_faiss
@pytest.mark.parametrize(
    ("folder", "index", "message"),
    [
        ("index", "Round", "--index Round: faiss cannot build it for"),
        ("index", "IVF9999,Flat", "--index IVF9999,Flat: faiss cannot build it for"),
        (".", "Flat", "expected a new or empty folder"),
    ],
)
def test_bad_arguments(trained: Path, tmp_path: Path, folder: str, index: str, message: str) -> None:
    (tmp_path / "file").write_text("here")
    done = cmi_fast("export", trained, "--faiss", tmp_path / folder, "--index", index)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_faiss_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="the package faiss is not installed; pip install faiss-cpu"):
        build_index(torch.randn(9, 2))
