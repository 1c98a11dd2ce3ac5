"""One training of an experiment, and one log: continued where a killed process left it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data import Histories, Interactions
from cmi_fast.data.files import remove_leftovers
from cmi_fast.data.split import Split
from cmi_fast.evaluation import EvaluationTask
from cmi_fast.evaluation.task import recent_plays
from cmi_fast.ranking import Ranker, translate
from cmi_fast.training.checkpoint import (
    Done,
    Epoch,
    State,
    Tensors,
    fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from cmi_fast.training.config import Config, Source, file_of
from cmi_fast.training.trainer import Keeper, Progress, build_model, candidate_frequency, train

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Log:
    """A log, split, in rows of the models' tables.

    plays: the training plays of each user; rows: the model's row of each item of the log, -1 outside the catalogue.
    """

    source: Source
    interactions: Interactions
    split: Split
    rows: NDArray[np.int64]
    plays: Histories

    @classmethod
    def read(cls, source: Source) -> Log:
        interactions = source.read()
        split = interactions.split(source.split)
        rows = np.where(split.catalogue, np.cumsum(split.catalogue) - 1, -1)
        return cls(source, interactions, split, rows, translate(split.train, rows))

    @property
    def name(self) -> str:
        return file_of(self.source.path).name.partition(".")[0]

    @cached_property
    def valid(self) -> EvaluationTask:
        return EvaluationTask.from_split(self.split, "valid")

    @cached_property
    def test(self) -> EvaluationTask:
        """Asked for when the settings are chosen and the weights trained, not before."""
        return EvaluationTask.from_split(self.split, "test")

    @cached_property
    def fingerprint(self) -> str:
        """Tells this log from others: of all parts."""
        parts = self.plays, self.split.valid, self.split.test
        return " ".join(fingerprint(part) for part in parts)

    def ranker(self, config: Config) -> Ranker:
        """A fresh model."""
        catalogue = self.interactions.item_ids[self.split.catalogue]
        model = build_model(config, len(catalogue), candidate_frequency(self.plays, len(catalogue)))
        recent = recent_plays(self.split)[self.split.catalogue]
        return Ranker(model, config, catalogue, self.rows[self.valid.popular], recent)


def train_on(log: Log, config: Config, folder: Path, progress: Progress) -> tuple[Ranker, list[Epoch]]:
    """Train to the best epoch by the valid part. ``folder`` holds what a repetition goes on from if this is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    ranker = log.ranker(config)
    state = State(config=config, device="cpu", item_categories=None, plays=log.fingerprint, done=Done())
    begun: tuple[Done, Tensors] | None = None
    if (folder / CHECKPOINT).exists():
        kept, tensors = read_checkpoint(folder / CHECKPOINT)
        if kept.config == config and kept.plays == state.plays:
            begun = kept.done, tensors
            for epoch in kept.done.epochs:
                progress.epoch(epoch, best=False)
    epochs = train(
        ranker.model,
        log.plays,
        config,
        evaluate=lambda: ranker.evaluate(log.valid, log.rows),
        keeper=_Folder(folder, ranker, state),
        progress=progress,
        checkpoint=begun,
    )
    return ranker, epochs


class _Folder(Keeper):
    """Keeps weights and checkpoints in a folder that goes when its result is written."""

    def __init__(self, folder: Path, ranker: Ranker, state: State) -> None:
        self._folder, self._ranker, self._state = folder, ranker, state

    def checkpoint(self, done: Done, tensors: Tensors) -> None:
        write_checkpoint(self._folder / CHECKPOINT, self._state.model_copy(update={"done": done}), tensors)

    def keep_best(self) -> None:
        self._ranker.save_weights(self._folder)

    def restore_best(self) -> None:
        self._ranker.restore_weights(self._folder)


def curve(epochs: list[Epoch], steps_per_epoch: int, metric: str) -> list[dict[str, Any]]:
    """What plots draw: steps and seconds of training until each measurement on valid, and what it was."""
    seconds = np.cumsum([epoch.seconds for epoch in epochs])
    return [
        {"steps": epoch.number * steps_per_epoch, "seconds": round(float(time), 3), "valid": epoch.valid[metric]}
        for epoch, time in zip(epochs, seconds, strict=True)
    ]
