"""CMI on fused operators against the same on the reference: ``python benchmarks/backends_on_a_log.py LOG PAGE``.

On a real log, with the same seed: how far the first losses are apart, whether valid Recall@50 differs by more than
between seeds, and how long either takes to the early stop. Writes PAGE, a Markdown file.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measure import fma_peak

from cmi_fast.data import Interactions
from cmi_fast.evaluation import EvaluationTask
from cmi_fast.evaluation.task import recent_plays
from cmi_fast.ranking import Ranker, translate
from cmi_fast.training.config import Config
from cmi_fast.training.models import MODELS
from cmi_fast.training.trainer import InMemory, Progress, candidate_frequency, train

SETTINGS = {"batch_size": 256, "steps_per_epoch": 250}  # all others are the defaults
FIRST = 50  # losses that are compared one by one
EPOCHS = 2  # of the reference


@dataclass
class Recorder(Progress):
    """The loss of every step, and when each step ended."""

    losses_: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def losses(self, steps: int, losses: dict[str, float]) -> None:
        self.losses_.append(losses["total"])
        self.seconds.append(time.perf_counter())


@dataclass
class Run:
    """Losses of the steps, median seconds of one, valid Recall@50 of the epochs, seconds in all."""

    losses: list[float]
    step: float
    recalls: list[float]
    seconds: float


def trained(log: Interactions, backend: str, seed: int, epochs: int | None) -> Run:
    """``epochs`` of a training, or all until it stops by itself."""
    config = Config(**SETTINGS, seed=seed, **({} if epochs is None else {"epochs": epochs}))
    split = log.split("day")
    catalogue = log.item_ids[split.catalogue]
    rows = np.where(split.catalogue, np.cumsum(split.catalogue) - 1, -1)
    plays = translate(split.train, rows)
    valid = EvaluationTask.from_split(split, "valid")
    torch.manual_seed(config.seed)
    model = MODELS["cmi"](
        config,
        num_items=len(catalogue),
        interests=config.interests,
        dim=config.dim,
        frequency=candidate_frequency(plays, len(catalogue)),
        backend=backend,
    )
    ranker = Ranker(model, config, catalogue, rows[valid.popular], recent_plays(split)[split.catalogue])
    recorder = Recorder()
    started = time.perf_counter()
    done = train(
        model,
        plays,
        config,
        evaluate=lambda: ranker.evaluate(valid, rows, recorder),
        keeper=InMemory(model),
        progress=recorder,
    )
    seconds = time.perf_counter() - started
    step = float(np.median(np.diff(recorder.seconds)))
    return Run(recorder.losses_, step, [epoch.valid["recall@50"] for epoch in done], seconds)


def main(path: Path, page: Path) -> None:
    log = Interactions.read(path)
    reference = trained(log, "reference", 0, EPOCHS)
    fused = trained(log, "auto", 0, None)
    others = [trained(log, "auto", seed, EPOCHS) for seed in (1, 2)]
    apart = np.abs(np.subtract(fused.losses[:FIRST], reference.losses[:FIRST])).max()
    steps = len(fused.losses)
    extrapolated = fused.seconds + steps * (reference.step - fused.step)

    def curve(name: str, run: Run) -> str:
        recalls = " | ".join(f"{recall:.4f}" for recall in run.recalls[:EPOCHS])
        return f"| {name} | {recalls} | {1e3 * run.step:.0f} |"

    settings = ", ".join(f"{key}={value}" for key, value in SETTINGS.items())
    heads = " | ".join(f"Recall@50 after {(i + 1) * SETTINGS['steps_per_epoch']} steps" for i in range(EPOCHS))
    lines = [
        "# CMI on the fused operators and on the reference",
        "",
        f"Written by `python benchmarks/backends_on_a_log.py {path.name} {page}`",
        f"on {datetime.date.today()}, {os.cpu_count()} processors, FMA peak {fma_peak():.0f} GFLOP/s.",
        f"Default settings but {settings}; Recall@50 of the valid day.",
        "",
        f"| | {heads} | median ms a step |",
        f"|---|{'---|' * (EPOCHS + 1)}",
        curve("reference, seed 0", reference),
        curve("fused, seed 0", fused),
        *(curve(f"fused, seed {seed}", run) for seed, run in enumerate(others, 1)),
        "",
        f"The first {FIRST} losses (of {fused.losses[0]:.2f} to {fused.losses[FIRST - 1]:.2f}) differ by at most "
        f"{apart:.1e}.",
        "",
        f"Fused, training stopped by itself after {steps} steps and {fused.seconds:.0f} s, measurements included. With",
        f"the reference's {1e3 * reference.step:.0f} ms a step in place of {1e3 * fused.step:.0f} it would be "
        f"{extrapolated:.0f} s, {extrapolated / fused.seconds:.1f} times as long (extrapolated).",
    ]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
