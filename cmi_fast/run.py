"""A run: the folder that training leaves, and what can be done with it afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cmi_fast.data import Histories, Interactions
from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.evaluation import POLICY, EvaluationTask, evaluate_baselines
from cmi_fast.evaluation.categories import category_agreement, read_item_categories
from cmi_fast.models import CMI
from cmi_fast.recommender import Recommender, translate
from cmi_fast.training.config import Config, Source
from cmi_fast.training.trainer import Progress, build_model, candidate_frequency, parse_device, train

Metrics = dict[str, Any]


def check_output(run: Path, data: Path, overwrite: bool) -> None:
    """Raise InputError, before any work is done, where the folder ``run`` cannot or must not be written."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: expected a folder, found a file")
    if run.is_dir() and data.resolve().parent == run.resolve():
        raise InputError(f"--out {run}: expected another folder than that of the log {data}")
    if run.is_dir() and any(run.iterdir()) and not overwrite:
        raise InputError(f"--out {run}: the folder is not empty; choose another or add --overwrite")
    existing = next(folder for folder in (run, *run.absolute().parents) if folder.exists() or folder.is_symlink())
    if not existing.is_dir():
        raise InputError(f"--out {run}: expected {existing} to be a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {run}: no permission to write in {existing}")


def train_run(
    data: Path,
    run: Path,
    config: Config,
    *,
    where: str | None = None,
    device: str = "cpu",
    item_categories: Path | None = None,
    on_read: Callable[[Interactions], None] = lambda interactions: None,
    progress: Progress | None = None,
) -> Metrics:
    """Read, split, train, evaluate beside the baselines; leave everything in ``run`` and return its metrics.

    The folder appears with the first epoch's weights: nothing is written for input that cannot be used.
    """
    progress = progress or Progress()
    target = parse_device(device)
    progress.phase("reading")
    if where is None and config.data is not None:
        where = config.data.where
    interactions = Interactions.read(data, where=where)
    on_read(interactions)
    split = interactions.split()
    catalogue = interactions.item_ids[split.catalogue]
    known = read_item_categories(item_categories, catalogue) if item_categories else None
    rows = np.where(split.catalogue, np.cumsum(split.catalogue) - 1, -1)  # the model's table holds the catalogue
    plays = translate(split.train, rows)
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    config = config.model_copy(update={"data": Source(path=str(data.resolve()), where=where)})
    model = build_model(config, len(catalogue), candidate_frequency(plays, len(catalogue))).to(target)
    recommender = Recommender(model, config, catalogue, rows[valid.popular])

    progress.phase("training")
    best, epochs = train(
        model,
        plays,
        config,
        evaluate=lambda: recommender.evaluate(valid, rows),
        save=lambda: _save(recommender, interactions, run),
        progress=progress,
    )
    progress.phase("evaluating")
    metrics: Metrics = {
        "model": config.model,
        "valid": best.valid,
        "test": recommender.evaluate(test, rows),
        "baselines": evaluate_baselines(split, valid, test),
        "policy": POLICY,
        "best_epoch": best.number,
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    if known is not None and isinstance(model, CMI):
        metrics["categories"] = category_agreement(model.assigned_categories().cpu().numpy(), known)
    with atomic_path(run / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def evaluate_run(run: Path, data: Path | None = None, where: str | None = None) -> Metrics:
    """Metrics of the trained model in ``run`` and of the baselines, on its own log or on ``data``."""
    recommender, interactions, rows = _open(run, data, where)
    split = interactions.split()
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    return {
        "model": recommender.config.model,
        "valid": recommender.evaluate(valid, rows),
        "test": recommender.evaluate(test, rows),
        "baselines": evaluate_baselines(split, valid, test),
        "policy": POLICY,
    }


def recommend_run(run: Path, out: Path, k: int, data: Path | None = None, where: str | None = None) -> pl.DataFrame:
    """Write the k best unseen items for every user of the log to ``out``: ``user_id, item_id, score, rank``."""
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: expected a name ending in .parquet or .csv")
    if out.resolve().parent == run.resolve():
        raise InputError(f"--out {out}: expected a place outside the run, whose files it might replace")
    recommender, interactions, rows = _open(run, data, where)
    source = data or Path(recommender.config.data.path if recommender.config.data else "")
    if out.exists() and out.samefile(source):
        raise InputError(f"--out {out}: expected another file than the log")
    with atomic_path(out) as path:
        frame = _recommendations(recommender, interactions, rows, min(k, len(recommender.item_ids)))
        frame.write_csv(path) if out.suffix == ".csv" else frame.write_parquet(path)
    return frame


def _recommendations(
    recommender: Recommender, interactions: Interactions, rows: NDArray[np.int64], k: int
) -> pl.DataFrame:
    everything = Histories.group(interactions.users, interactions.items, interactions.num_users)
    scores, found = recommender.recommend(translate(everything, rows), k)
    listed = found >= 0
    return pl.DataFrame(
        {
            "user_id": np.repeat(interactions.user_ids, listed.sum(1)),
            "item_id": recommender.item_ids[found[listed]],
            "score": scores[listed],
            "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.int32), found.shape)[listed],
        }
    )


def _save(recommender: Recommender, interactions: Interactions, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.json").unlink(missing_ok=True)  # of an earlier run: it would describe other weights
    with atomic_path(run / "users.parquet") as path:
        pl.DataFrame({"user_id": interactions.user_ids}).write_parquet(path)
    recommender.save(run)


def _open(run: Path, data: Path | None, where: str | None) -> tuple[Recommender, Interactions, NDArray[np.int64]]:
    """The model, a log (its own, or ``data``), and the model's row of each item of the log."""
    recommender = Recommender.load(run)
    source = recommender.config.data
    if data is None and source is None:
        raise InputError(f"{run}: config.toml names no log; say which with --data")
    if data is None and source is not None:
        data, where = Path(source.path), where or source.where
    assert data is not None
    interactions = Interactions.read(data, where=where)
    rows = recommender.encode(interactions.item_ids)
    if not (rows >= 0).any():
        raise InputError(f"{data}: found no item that the model in {run} knows")
    return recommender, interactions, rows
