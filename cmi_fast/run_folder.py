"""The folder of a run as training fills it: weights, checkpoints, and a log of what was decided."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmi_fast import _native
from cmi_fast.data import Histories, Interactions, Split
from cmi_fast.data.files import atomic_path
from cmi_fast.data.split import TEST, TRAIN, VALID
from cmi_fast.evaluation.categories import KnownCategories
from cmi_fast.evaluation.users import USER_METRICS
from cmi_fast.models import MultiInterestModel
from cmi_fast.ranking import Ranker, translate, write_users
from cmi_fast.training.checkpoint import Done, State, Tensors, write_checkpoint
from cmi_fast.training.config import Config, file_of
from cmi_fast.training.record import RunLog, TensorBoard
from cmi_fast.training.trainer import Keeper

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.txt"
EVENTS = "tensorboard"
REPORT = "report.html"


class RunFolder(Keeper):
    """Keeps weights and checkpoints in the folder of a run."""

    def __init__(
        self,
        run: Path,
        ranker: Ranker,
        interactions: Interactions,
        rows: NDArray[np.int64],
        state: State,
        log: RunLog,
        events: TensorBoard | None,
        resumed: Done | None,
    ) -> None:
        self._run, self._ranker, self._interactions, self._rows = run, ranker, interactions, rows
        self._state, self._log, self._events, self._begun = state, log, events, resumed is not None
        if resumed is not None:
            self._open_records(resumed)

    def checkpoint(self, done: Done, tensors: Tensors) -> None:
        if not self._begun:
            self._begin()
        if self._events is not None:
            self._events.keep(done.epochs)
        state = self._state.model_copy(update={"done": done})
        write_checkpoint(self._run / CHECKPOINT, state, tensors)

    def keep_best(self) -> None:
        self._ranker.save_weights(self._run)

    def restore_best(self) -> None:
        self._ranker.restore_weights(self._run)

    def _begin(self) -> None:
        """Everything but the weights; what an earlier run left goes, as it would describe other weights."""
        self._run.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", USER_METRICS, REPORT, LOG, CHECKPOINT):
            (self._run / name).unlink(missing_ok=True)
        shutil.rmtree(self._run / EVENTS, ignore_errors=True)
        histories = translate(self._interactions.histories(), self._rows)
        write_users(self._run / "users.parquet", self._interactions.user_ids, histories)
        self._ranker.save(self._run, weights=False)
        self._open_records(Done())
        self._begun = True

    def _open_records(self, done: Done) -> None:
        self._log.begin()
        if self._events is not None:
            self._events.begin(done)


def decisions(
    state: State,
    interactions: Interactions,
    split: Split,
    model: MultiInterestModel,
    known: KnownCategories | None,
) -> list[str]:
    """What is trained on what, a line each."""
    config = state.config
    assert config.data is not None
    parts = []
    for name, part in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        days = interactions.days[split.part == part]
        parts.append(f"{name} {len(days):,} plays of days {days.min()} to {days.max()}")
    left_out = int(np.sum(~split.catalogue[interactions.items]))
    items, all_items = int(split.catalogue.sum()), interactions.num_items
    settings = config.model_dump(exclude={"data", "model"})
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, device {state.device}, "
        f"compiled operators: {'yes' if _native.available else 'no'}",
        f"log: {file_of(config.data.path)}",
        *(f"reading: {name} = {value}" for name, value in config.data.model_dump(exclude={"path"}).items() if value),
        *(f"reading: {note}" for note in interactions.notes),
        f"{len(interactions.users):,} plays of {interactions.num_users:,} users on {all_items:,} items",
        f"split by {split.by}: {'; '.join(parts)}",
        f"{items:,} items have a training play and can be recommended; {left_out:,} plays are of the other "
        f"{all_items - items:,}, which histories leave out",
        f"model: {config.model}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        *(f"setting: {name} = {value}" for name, value in settings.items()),
    ]
    if known is not None:
        lines.append(f"known categories of {int((known.of >= 0).sum()):,} items from {state.item_categories}")
    return lines


def outcome(metrics: dict[str, Any], config: Config) -> list[str]:
    """How training ended, and with what."""
    run, best = len(metrics["epochs"]), metrics["best_epoch"]
    why = "the most allowed" if run == config.epochs else f"no better one in the last {config.patience}"
    lines = [f"training ended after epoch {run}, {why}; the weights are those of epoch {best}, best on valid"]
    if metrics["baselines"]:
        lines.append(f"ItemKNN with {metrics['baselines']['item_knn']['neighbours']} neighbours, the best on valid")
    systems = {metrics["model"]: metrics, **metrics["baselines"]}
    part = "test" if "test" in metrics else "valid"
    lines += [f"{part} recall@50 of {name}: {result[part]['recall@50']:.4f}" for name, result in systems.items()]
    return lines


def write_report(
    run: Path,
    ranker: Ranker,
    metrics: dict[str, Any],
    user_ids: NDArray[Any],
    histories: Histories,
    known: KnownCategories | None,
) -> Path:
    """Write ``report.html``, for whose arguments see :func:`cmi_fast.report.page.render`."""
    from cmi_fast.report.page import render  # which loads Jinja

    page = render(run.resolve().name, ranker, metrics, user_ids, histories, known)
    with atomic_path(run / REPORT) as path:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return run / REPORT
