"""Training into a run: the folder that :mod:`cmi_fast.trained_run` works with afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cmi_fast.data import Interactions
from cmi_fast.data.files import atomic_path, remove_leftovers
from cmi_fast.errors import InputError
from cmi_fast.evaluation import POLICY, EvaluationTask, evaluate_baselines
from cmi_fast.evaluation.categories import category_agreement, read_item_categories
from cmi_fast.evaluation.task import recent_plays
from cmi_fast.evaluation.users import USER_METRICS, write_user_metrics
from cmi_fast.models import CMI
from cmi_fast.ranking import Ranker, translate
from cmi_fast.run_folder import CHECKPOINT, EVENTS, LOG, RunFolder, decisions, outcome, write_report
from cmi_fast.training.checkpoint import Done, Evaluation, State, Tensors, fingerprint, read_checkpoint
from cmi_fast.training.config import Config, Source, file_name, file_of
from cmi_fast.training.record import RunLog, Several, TensorBoard
from cmi_fast.training.trainer import (
    Progress,
    best_epoch,
    build_model,
    candidate_frequency,
    parse_device,
    train,
)

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
    data: Path | Source,
    run: Path,
    config: Config,
    *,
    device: str = "cpu",
    item_categories: Path | None = None,
    evaluation: Evaluation | None = None,
    tensorboard: bool = False,
    on_read: Callable[[Interactions], None] = lambda interactions: None,
    progress: Progress | None = None,
    checkpoint: tuple[State, Tensors] | None = None,
) -> Metrics:
    """Read, split, train, evaluate beside the baselines; leave everything in ``run`` and return its metrics.

    ``evaluation`` says what is evaluated when training is done: test part and baselines, unless told otherwise.

    The folder appears when training begins: nothing is written for input that cannot be used. From then on
    :func:`resume_run` can continue, until the metrics are written. ``tensorboard``: events in ``run/tensorboard``.
    """
    evaluation = evaluation or Evaluation()
    log = RunLog(run / LOG)
    events = TensorBoard(run / EVENTS) if tensorboard else None
    progress = Several(*(part for part in (progress, log, events) if part is not None))
    target = parse_device(device)
    if run.is_dir():
        remove_leftovers(run)
    progress.phase("reading")
    source = Source(path=file_name(data)) if isinstance(data, Path) else data
    interactions = source.read()
    on_read(interactions)
    split = interactions.split(source.split)
    catalogue = interactions.item_ids[split.catalogue]
    known = read_item_categories(item_categories, catalogue) if item_categories else None
    rows = np.where(split.catalogue, np.cumsum(split.catalogue) - 1, -1)  # the model's table holds the catalogue
    plays = translate(split.train, rows)
    valid, test = (EvaluationTask.from_split(split, name) for name in ("valid", "test"))
    config = config.model_copy(update={"data": source})
    model = build_model(config, len(catalogue), candidate_frequency(plays, len(catalogue))).to(target)
    ranker = Ranker(model, config, catalogue, rows[valid.popular], recent_plays(split)[split.catalogue])

    state = State(
        config=config,
        device=device,
        item_categories=None if item_categories is None else str(item_categories.resolve()),
        evaluation=evaluation,
        tensorboard=tensorboard,
        plays=fingerprint(plays),
        done=Done(),
    )
    if checkpoint is not None and checkpoint[0].plays != state.plays:
        raise InputError(
            f"{file_of(source.path)}: has changed since the training in {run} began; train into another folder"
        )
    if checkpoint is None:
        log.say(*decisions(state, interactions, split, model, known))
    progress.phase("training")
    epochs = train(
        model,
        plays,
        config,
        evaluate=lambda: ranker.evaluate(valid, rows, progress),
        keeper=RunFolder(run, ranker, interactions, rows, state, log, events, checkpoint and checkpoint[0].done),
        progress=progress,
        checkpoint=None if checkpoint is None else (checkpoint[0].done, checkpoint[1]),
    )
    best = best_epoch(epochs)
    progress.phase("evaluating")
    tasks = [valid, test] if evaluation.test else [valid]
    if evaluation.users:
        lists = [(config.model, task, ranker.rank_task(task, rows)) for task in tasks]
        write_user_metrics(run / USER_METRICS, interactions.user_ids, lists)
    metrics: Metrics = {"model": config.model, "valid": best.valid}
    if evaluation.test:
        metrics["test"] = ranker.evaluate(test, rows, progress)
    progress.phase("baselines")
    metrics |= {
        "baselines": evaluate_baselines(split, *tasks) if evaluation.baselines else {},
        "policy": POLICY,
        "best_epoch": best.number,
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    if known is not None and isinstance(model, CMI):
        metrics["categories"] = category_agreement(
            model.assigned_categories().cpu().numpy(), known.of, ranker.popular
        ) | {"file": state.item_categories}
    if events is not None:
        events.keep(epochs)
    with atomic_path(run / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    log.say(*outcome(metrics, config))
    (run / CHECKPOINT).unlink()
    if evaluation.baselines:
        progress.phase("report")
        write_report(run, ranker, metrics, interactions.user_ids, translate(interactions.histories(), rows), known)
    return metrics


def resume_run(
    run: Path,
    *,
    on_read: Callable[[Interactions], None] = lambda interactions: None,
    progress: Progress | None = None,
) -> Metrics:
    """Continue the training that was interrupted in ``run``; it ends with the same weights, bit for bit."""
    if not run.is_dir():
        raise InputError(f"--resume {run}: expected the folder of a training that was interrupted, found none")
    if not (run / CHECKPOINT).exists():
        complete = (run / "metrics.json").exists()
        found = "this training is complete" if complete else f"found no {CHECKPOINT}, training had not begun"
        raise InputError(f"--resume {run}: {found}")
    state, tensors = read_checkpoint(run / CHECKPOINT)
    if state.config.data is None:
        raise InputError(f"{run / CHECKPOINT}: names no log")
    return train_run(
        state.config.data,
        run,
        state.config,
        device=state.device,
        item_categories=None if state.item_categories is None else Path(state.item_categories),
        evaluation=state.evaluation,
        tensorboard=state.tensorboard,
        on_read=on_read,
        progress=progress,
        checkpoint=(state, tensors),
    )
