"""A run: the folder that training leaves, and what can be done with it afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from cmi_fast.data import DaySplit, Histories, Interactions
from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.evaluation import POLICY, EvaluationTask, evaluate_baselines
from cmi_fast.evaluation.categories import category_agreement, read_item_categories
from cmi_fast.recommender import Recommender, translate
from cmi_fast.training.config import Config, Source
from cmi_fast.training.trainer import Epoch, Progress, build_model, candidate_frequency, train

Metrics = dict[str, Any]


def check_output(run: Path, overwrite: bool) -> None:
    """Raise InputError, before any work is done, where the folder ``run`` cannot be written."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: expected a folder, found a file")
    if run.is_dir() and any(run.iterdir()) and not overwrite:
        raise InputError(f"--out {run}: the folder is not empty; choose another or add --overwrite")
    existing = next(folder for folder in (run, *run.resolve().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"--out {run}: no permission to write in {existing}")


def train_run(
    data: Path,
    run: Path,
    config: Config,
    *,
    where: str | None = None,
    item_categories: Path | None = None,
    on_read: Callable[[Interactions], None] = lambda interactions: None,
    progress: Progress | None = None,
) -> Metrics:
    """Read, split, train, evaluate beside the baselines; leave everything in ``run`` and return its metrics.

    The folder appears with the first epoch's weights: nothing is written for input that cannot be used.
    """
    progress = progress or Progress()
    known = read_item_categories(item_categories) if item_categories else None
    interactions = Interactions.read(data, where=where)
    on_read(interactions)
    split = interactions.split()
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    config = config.model_copy(update={"data": Source(path=str(data.resolve()), where=where)})
    model = build_model(config, split.num_items, candidate_frequency(split))
    recommender = Recommender(model, config, interactions.item_ids, split.catalogue, valid.popular)
    rows = np.arange(split.num_items)

    show = progress.on_epoch

    def save_best(epoch: Epoch, best: bool) -> None:
        if best:
            _save(recommender, interactions, run)
        show(epoch, best)

    best = train(
        model,
        split,
        config,
        lambda: recommender.evaluate(valid, rows),
        Progress(progress.on_step, save_best, progress.epochs),
    )
    metrics: Metrics = {
        "model": config.model,
        "valid": best.valid,
        "test": recommender.evaluate(test, rows),
        "baselines": evaluate_baselines(split, valid, test),
        "policy": POLICY,
        "best_epoch": best.number,
        "epochs": [vars(epoch) for epoch in progress.epochs],
    }
    if known is not None:
        metrics["categories"] = _category_agreement(recommender, split, known)
    with atomic_path(run / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def evaluate_run(run: Path, data: Path | None = None) -> Metrics:
    """Metrics of the trained model in ``run`` and of the baselines, on its own log or on ``data``."""
    recommender, interactions = _open(run, data)
    split = interactions.split()
    rows = recommender.encode(interactions.item_ids)
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    return {
        "model": recommender.config.model,
        "valid": recommender.evaluate(valid, rows),
        "test": recommender.evaluate(test, rows),
        "baselines": evaluate_baselines(split, valid, test),
        "policy": POLICY,
    }


def recommend_run(run: Path, k: int, data: Path | None = None) -> pl.DataFrame:
    """The k best unseen items for every user of the log: columns ``user_id, item_id, score, rank``."""
    recommender, interactions = _open(run, data)
    everything = Histories.group(interactions.users, interactions.items, len(interactions.user_ids))
    histories = translate(everything, recommender.encode(interactions.item_ids))
    scores, rows = recommender.recommend(histories, k)
    found = rows >= 0
    return pl.DataFrame(
        {
            "user_id": np.repeat(interactions.user_ids, found.sum(1)),
            "item_id": recommender.item_ids[rows[found]],
            "score": scores[found],
            "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.int32), rows.shape)[found],
        }
    )


def _save(recommender: Recommender, interactions: Interactions, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.json").unlink(missing_ok=True)  # of an earlier run: it would describe other weights
    recommender.save(run)
    with atomic_path(run / "users.parquet") as path:
        pl.DataFrame({"user_id": interactions.user_ids}).write_parquet(path)


def _open(run: Path, data: Path | None) -> tuple[Recommender, Interactions]:
    recommender = Recommender.load(run)
    source = recommender.config.data
    if data is None and source is None:
        raise InputError(f"{run}: config.toml names no log; say which with --data")
    if data is None:
        assert source is not None
        return recommender, Interactions.read(Path(source.path), where=source.where)
    return recommender, Interactions.read(data, where=source.where if source else None)


def _category_agreement(recommender: Recommender, split: DaySplit, known: pl.DataFrame) -> dict[str, float]:
    with torch.no_grad():
        assigned = recommender.model.assigned_categories().numpy()
    catalogue = split.catalogue
    return category_agreement(recommender.item_ids[catalogue], assigned[catalogue], known)
