"""A rolling test: each of several days in turn is the test day, with several seeds, for comparisons over users."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cmi_fast.data import Interactions
from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.evaluation import CUTOFFS, EvaluationTask, PairedDifference, paired_bootstrap
from cmi_fast.evaluation.baselines import Baselines
from cmi_fast.evaluation.users import USER_METRICS, read_user_metrics, write_user_metrics
from cmi_fast.run import resume_run, train_run
from cmi_fast.run_folder import CHECKPOINT
from cmi_fast.training.checkpoint import Evaluation
from cmi_fast.training.config import Config, Source, load_config
from cmi_fast.training.trainer import Progress

BASELINES = "baselines"
METRICS = tuple(f"{metric}@{k}" for metric in ("recall", "hitrate", "ndcg", "mrr") for k in CUTOFFS)


@dataclass(frozen=True)
class Days:
    """The test days ``first`` to ``last``, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Days:
        """``"11:14"``. Raises InputError where it is no such thing."""
        found = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})", text)
        if found is None or int(found[1]) > int(found[2]):
            raise InputError(f"--rolling {text}: expected the first and the last test day, such as 11:14")
        return cls(int(found[1]), int(found[2]))

    def __iter__(self) -> Any:
        return iter(range(self.first, self.last + 1))


def train_rolling(
    source: Source,
    folder: Path,
    config: Config,
    days: Days,
    seeds: int,
    *,
    test: bool = True,
    device: str = "cpu",
    item_categories: Path | None = None,
    on_run: Callable[[str], None] = lambda name: None,
    progress: Progress | None = None,
) -> None:
    """Train for every test day t up to day t-2, with early stopping on t-1, with seeds ``config.seed``, +1, ...

    Each training is a run in a folder of its own in ``folder``, ``DAY-SEED``, with the metrics of each user; those of
    the baselines are in ``DAY-baselines``. What is complete is not done again: after an interruption, or for more days
    or seeds, the same call goes on.

    Args:
        test: False leaves the test day out, of models and baselines: for the search of settings.
        item_categories: as in :func:`cmi_fast.run.train_run`; the agreement goes into each run's ``metrics.json``.
        on_run: told the name of each folder when work in it begins.

    Raises:
        InputError: a day cannot be split so, or ``folder`` holds something else, such as runs with other settings.
    """
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, found {seeds}")
    if source.split != "day":
        raise InputError(f"--rolling: expected a split by day, found --split {source.split}")
    _check_folder(folder)
    _check_days(source.read(), days)
    evaluation = Evaluation(test=test, baselines=False, users=True)
    for day in days:
        until = source.model_copy(update={"last_day": day})
        _check_complete(folder / f"{day}-{BASELINES}", test)
        if not (folder / f"{day}-{BASELINES}" / "metrics.json").exists():
            on_run(f"{day}-{BASELINES}")
            _write_baselines(until, folder / f"{day}-{BASELINES}", test)
        for seed in range(config.seed, config.seed + seeds):
            run = folder / f"{day}-{seed}"
            settings = config.model_copy(update={"seed": seed, "data": until})
            if (run / "config.toml").exists():
                _check_same(load_config(run / "config.toml"), settings, run)
            _check_complete(run, test)
            if (run / "metrics.json").exists():
                continue
            on_run(run.name)
            if (run / CHECKPOINT).exists():
                resume_run(run, progress=progress)
            else:
                train_run(
                    until,
                    run,
                    settings,
                    device=device,
                    item_categories=item_categories,
                    evaluation=evaluation,
                    progress=progress,
                )


def _check_folder(folder: Path) -> None:
    """It is new, or an earlier call's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"--out {folder}: expected a folder, found a file")
    others = sorted(path.name for path in folder.iterdir() if not re.fullmatch(rf"-?\d+-(\d+|{BASELINES})", path.name))
    if others:
        raise InputError(f"--out {folder}: expected a new folder or one of runs such as 11-0, found {others[0]}")


def _check_days(interactions: Interactions, days: Days) -> None:
    present = set(np.unique(interactions.days).tolist())
    for day in days:
        missing = [needed for needed in (day, day - 1) if needed not in present]
        if missing or min(present) >= day - 1:
            found = f"no plays on day {missing[0]}" if missing else f"no plays before day {day - 1}"
            expected = "it needs plays on the test day, on the one before, and earlier"
            raise InputError(f"--rolling: test day {day}: found {found}; {expected}")


def _check_same(found: Config, expected: Config, run: Path) -> None:
    names = [name for name in Config.model_fields if getattr(found, name) != getattr(expected, name)]
    if names:
        name = names[0]
        told = f"{name} = {getattr(found, name)!r}, not {getattr(expected, name)!r}"
        raise InputError(f"{run}: was trained with other settings: {told}; choose another --out")


def _check_complete(run: Path, test: bool) -> None:
    """What is there has the test day, or has not, as it is asked for now."""
    if (run / "metrics.json").exists() and _has_test(run) != test:
        told = "without the test day (--no-test)" if test else "with the test day"
        raise InputError(f"{run}: was evaluated {told}; choose another --out")


def _has_test(run: Path) -> bool:
    return "test" in read_user_metrics(run / USER_METRICS)["part"]


def _write_baselines(source: Source, run: Path, test: bool) -> None:
    interactions = source.read()
    split = interactions.split(source.split)
    valid = EvaluationTask.from_split(split, "valid")
    tasks = [valid, EvaluationTask.from_split(split, "test")] if test else [valid]
    models = Baselines.fit(split, valid)
    run.mkdir(parents=True, exist_ok=True)
    lists = [(name, task, ranked) for task in tasks for name, ranked in models.rank(task).items()]
    write_user_metrics(run / USER_METRICS, interactions.user_ids, lists)
    metrics = models.settings
    for name, task, ranked in lists:
        metrics[name][task.name] = task.evaluate(ranked)
    with atomic_path(run / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Rolling:
    """What a rolling test left: each user's metrics, averaged over seeds.

    part: "test", or "valid" where the test days were left out.
    frame: ``system, day, user_id`` and the metrics; days are test days.
    by_seed: ``day, seed, users``, how many, and the mean metrics over them, of the model.
    """

    model: str
    part: str
    frame: pl.DataFrame
    by_seed: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Rolling:
        """Raises InputError where ``folder`` holds no complete run, or an incomplete one."""
        if not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of train --rolling, found none")
        frames = []
        for run in sorted(folder.iterdir()):
            named = re.fullmatch(rf"(-?\d+)-(\d+|{BASELINES})", run.name)
            if named is None:
                raise InputError(f"{folder}: expected the folder of train --rolling, found {run.name} in it")
            if not (run / "metrics.json").exists():
                raise InputError(f"{run}: is not complete; repeat the command that trains it")
            seed = None if named[2] == BASELINES else int(named[2])
            keys = [pl.lit(int(named[1])).alias("day"), pl.lit(seed, pl.Int64).alias("seed")]
            frames.append(read_user_metrics(run / USER_METRICS).with_columns(keys))
        if not frames:
            raise InputError(f"{folder}: expected the folder of train --rolling, found it empty")
        everything = pl.concat(frames)
        part = "test" if "test" in everything["part"] else "valid"
        everything = everything.filter(part=part)
        trained = everything.filter(pl.col("seed").is_not_null())
        if trained.is_empty():
            raise InputError(f"{folder}: found no trained model")
        users = everything.group_by("system", "day", "user_id").agg(pl.col(METRICS).mean())
        by_seed = (
            trained.group_by("day", "seed").agg(pl.len().alias("users"), pl.col(METRICS).mean()).sort("day", "seed")
        )
        return cls(trained["system"][0], part, users.sort("system", "day", "user_id"), by_seed)

    def deviations(self) -> dict[str, float | None]:
        """The standard deviation over seeds of each metric's mean over users and days; None for a single seed.

        Only seeds that have all days count: others differ by their days.
        """
        complete = self.by_seed.filter(pl.len().over("seed") == self.by_seed["day"].n_unique())
        weighted = [(pl.col(name) * pl.col("users")).sum() / pl.col("users").sum() for name in METRICS]
        return complete.group_by("seed").agg(weighted).select(pl.col(METRICS).std()).row(0, named=True)

    def of(self, system: str) -> pl.DataFrame:
        """The rows of one system."""
        return self.frame.filter(system=system)


def differences(a: pl.DataFrame, b: pl.DataFrame, metrics: tuple[str, ...] = METRICS) -> dict[str, PairedDifference]:
    """a - b for each metric, over the users and days (rows ``day, user_id``) that both have.

    Raises InputError where a day of both has other users in the one than in the other: they are of different logs.
    """
    days = sorted(set(a["day"]) & set(b["day"]))
    a, b = (frame.filter(pl.col("day").is_in(days)).sort("day", "user_id") for frame in (a, b))
    if not days or not a.select("day", "user_id").equals(b.select("day", "user_id")):
        raise InputError("compare: expected two rolling tests of the same log with a day in common")
    users = a["user_id"].to_numpy()
    return {name: paired_bootstrap(a[name].to_numpy(), b[name].to_numpy(), users) for name in metrics}
