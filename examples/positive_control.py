"""Does CMI find what is there? Train on simulated logs in which its effects are planted, and where they are not.

    python examples/positive_control.py runs/control docs/positive_control.png

Writes runs/control/results.json and the picture (needs matplotlib). What is complete is not trained again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import polars as pl
import torch.nn.functional as F
from matplotlib.axes import Axes

from cmi_fast import Recommender
from cmi_fast.data.simulate import write_simulation
from cmi_fast.evaluation import paired_bootstrap
from cmi_fast.run import train_run
from cmi_fast.training.checkpoint import Evaluation
from cmi_fast.training.config import make_config

LOG = {"users": 2000, "items": 4000, "plays_per_user": 40, "noise": 0.1}
TRAINING = {"lr": 0.003, "recent_weight": 0.0, "dim": 16, "steps_per_epoch": 150, "epochs": 7, "annealing_steps": 500}
METRIC = "recall@50"
SHARE = {"share_weight": 1.0}
ANNEALED = {**SHARE, "first_assignment_temperature": 1.0}


@dataclass(frozen=True)
class Panel:
    """One option of the log, by its values, against variants of the model; the first variant is what others are
    compared with."""

    option: str
    values: tuple[float, ...]
    variants: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)  # each has a log and a training of its own


ALONE = {"general_interest": False, "contrastive_weight": 0.0}
COUNTS = {"m = 1": {"interests": 1}, "m = 8": {}, "m = 8, share": SHARE, "m = 8, share, annealed": ANNEALED}
LONGER = {name: options for name, options in COUNTS.items() if name != "m = 8, share"}
PANELS = {
    "interests, 1,050 steps": Panel("categories", (8, 16, 40), COUNTS, ALONE, seeds=(0, 1)),
    "interests, 3,000 steps": Panel("categories", (8, 40), LONGER, {**ALONE, "epochs": 20}),
    "general interest": Panel(
        "drift",
        (0, 0.3),
        {"without": {"general_interest": False}, "with": {}},
        {**ANNEALED, "contrastive_weight": 0.0},
        {"categories": 40},
        seeds=(0, 1),
    ),
    "contrastive loss": Panel(
        "noise",
        (0.1, 0.6),
        {"0": {"contrastive_weight": 0.0}, "0.1": {"contrastive_weight": 0.1}},
        {**ANNEALED, "general_interest": False},
        {"categories": 40},
    ),
}


def train(folder: Path, log_options: dict[str, Any], settings: dict[str, Any], seed: int) -> Path:
    """The folder of a run on a simulated log; both are made where they are missing."""
    log = folder / "logs" / f"{name_of({**log_options, 'seed': seed})}.parquet"
    log.parent.mkdir(parents=True, exist_ok=True)
    if not log.exists():
        write_simulation(log, **{**LOG, **log_options}, seed=seed)
    run = folder / "runs" / f"{log.stem}-{name_of(settings)}"
    if not (run / "metrics.json").exists():
        config = make_config(**{**TRAINING, **settings}, seed=seed)
        evaluation = Evaluation(baselines=False, users=True)
        train_run(log, run, config, item_categories=log.with_suffix(".truth.parquet"), evaluation=evaluation)
        print(run.name, json.loads((run / "metrics.json").read_text())["test"][METRIC], flush=True)
    return run


def name_of(options: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(options.items())) or "default"


def user_metrics(runs: list[Path]) -> pl.DataFrame:
    """``run, user_id`` and the metric on the test day."""
    frames = [pl.read_parquet(run / "user_metrics.parquet").filter(part="test") for run in runs]
    return pl.concat([frame.with_columns(run=number) for number, frame in enumerate(frames)]).sort("run", "user_id")


def interest_cosine(run: Path) -> float | None:
    """The mean cosine between two interests of a user, None with one interest or u_g in them."""
    recommender = Recommender.load(run)
    config = recommender.config
    if config.interests == 1 or config.general_interest:
        return None
    unit = F.normalize(recommender.interests()[..., : config.dim], dim=-1)
    gram = (unit @ unit.mT).mean(0)
    return float((gram.sum() - gram.trace()) / (gram.numel() - len(gram)))


def summary(runs: list[Path], others: list[Path]) -> dict[str, Any]:
    """Of the same variant with all seeds: the metric, what it gains over ``others``, and its categories."""
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    ours, theirs = user_metrics(runs), user_metrics(others)
    assert ours.select("run", "user_id").equals(theirs.select("run", "user_id"))
    gain = paired_bootstrap(ours[METRIC].to_numpy(), theirs[METRIC].to_numpy())  # each seed's users are its own
    cosines = [interest_cosine(run) for run in runs]
    return {
        METRIC: [m["test"][METRIC] for m in metrics],
        "best_epoch": [m["best_epoch"] for m in metrics],
        "gain": [gain.difference, gain.low, gain.high],
        "nmi": [m["categories"]["nmi"] for m in metrics],
        "nmi_shuffled": [m["categories"]["nmi_shuffled"] for m in metrics],
        "cosine": cosines,
    }


def evaluate(folder: Path, panel: Panel) -> dict[str, dict[str, Any]]:
    """A summary for each variant and value of the option."""
    results: dict[str, dict[str, Any]] = {variant: {} for variant in panel.variants}
    for value in panel.values:
        log = {**panel.log, panel.option: value}
        runs = {
            variant: [train(folder, log, {**panel.settings, **settings}, seed) for seed in panel.seeds]
            for variant, settings in panel.variants.items()
        }
        for variant in runs:
            results[variant][str(value)] = summary(runs[variant], next(iter(runs.values())))
    return results


def draw(axes: Axes, title: str, panel: Panel, results: dict[str, dict[str, Any]]) -> None:
    first, *others = results
    for place, variant in enumerate(others):
        at = [x + 0.06 * (place - 1) for x in range(len(panel.values))]
        gains = [result["gain"] for result in results[variant].values()]
        errors = [[gain - low for gain, low, _ in gains], [high - gain for gain, _, high in gains]]
        axes.errorbar(at, [gain[0] for gain in gains], errors, marker="o", markersize=4, capsize=2, label=variant)
    axes.axhline(0, color="#9ca3af", linewidth=1, zorder=0, label=first)
    axes.set(title=title, xlabel=panel.option, xticks=range(len(panel.values)), xticklabels=panel.values)
    axes.margins(x=0.2)
    axes.legend(frameon=False, fontsize=7)


def main() -> None:
    folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
    results = {}
    for title, panel in PANELS.items():
        results[title] = evaluate(folder, panel)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 3), sharey=True, layout="constrained")
    for one, (title, panel) in zip(axes, PANELS.items(), strict=True):
        draw(one, title, panel, results[title])
    axes[0].set_ylabel("gain of test Recall@50")
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
