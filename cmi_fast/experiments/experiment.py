"""An experiment: for every system of a table a search on valid, then runs with the settings chosen, on test."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import cmi_fast
from cmi_fast.data.files import atomic_path, write_frame
from cmi_fast.errors import InputError
from cmi_fast.evaluation import POLICY, evaluate_baselines, paired_bootstrap
from cmi_fast.experiments.paper import METRICS
from cmi_fast.experiments.plan import CMI, SELECTED_BY, SYSTEMS, Budget, System, Table
from cmi_fast.experiments.progress import Overall
from cmi_fast.experiments.search import make_config, search, space
from cmi_fast.experiments.training import Log, curve, train_on

Results = dict[str, Any]
PLAN = "experiment.json"


@contextmanager
def opened(out: Path, logs: Sequence[Log], budget: Budget) -> Iterator[None]:
    """The folder ``out``, for this process alone, begun or continued: what it holds must come from the same work."""
    out.mkdir(parents=True, exist_ok=True)
    plan = {"budget": budget.model_dump(), "data": {log.name: log.fingerprint for log in logs}}
    with (out / ".lock").open("w") as lock:  # let go by the system when the process ends, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {out}: another experiment is running in it") from None
        if (out / PLAN).exists():
            _require_same(out, plan, _read_json(out / PLAN))
        else:
            write_json(out / PLAN, plan)
        yield


def run_table(table: Table, logs: Sequence[Log], budget: Budget, out: Path, overall: Overall) -> Results:
    """The results of ``table`` on ``logs``. What ``out`` holds already, also of another table, is not repeated."""
    return {
        "table": table.value,
        "budget": budget.model_dump(),
        "policy": POLICY,
        "cmi_fast": cmi_fast.build_info(),
        "data": [_run_log(table, log, budget, out, overall) for log in logs],
    }


def _run_log(table: Table, log: Log, budget: Budget, out: Path, overall: Overall) -> Results:
    systems = [_run_system(system, log, budget, out, overall) for system in SYSTEMS[table]]
    users = {system["key"]: _user_means(out, log, system["key"], budget.seeds) for system in systems}
    reference = CMI.key if table is not Table.table4 else "cmi-m8"
    for system in systems:
        if system["key"] != reference:
            system["against"] = _compare(users[system["key"]], users[reference])
    overall.phase("baselines")
    baselines = evaluate_baselines(log.split, log.valid, log.test)
    return {
        "name": log.name,
        "source": log.source.model_dump(),
        "test_users": len(log.test.users),
        "reference": reference,
        "systems": systems,
        "baselines": {name: {metric: found["test"][metric] for metric in METRICS} for name, found in baselines.items()},
    }


def _run_system(system: System, log: Log, budget: Budget, out: Path, overall: Overall) -> Results:
    begin = overall.system(f"{log.name}, {system.name}")
    trials = search(log, system, budget, out, begin)
    chosen = trials[0]["settings"]
    runs = []
    for seed in range(budget.seeds):
        path = _run_path(out, log, system.key, seed)
        if not path.exists():
            progress = begin(f"run {seed + 1}", budget.final_steps)
            _final_run(system, log, budget, {**chosen, "seed": seed}, out, path, progress)
        else:
            begin(f"run {seed + 1}", 0)
        runs.append(_read_json(path))
    values = {metric: [run["test"][metric] for run in runs] for metric in METRICS}
    return {
        "key": system.key,
        "name": system.name,
        "preset": system.preset,
        "settings": system.settings,
        "space": space(system),
        "chosen": chosen,
        "trials": trials,
        "runs": runs,
        "mean": {metric: float(np.mean(found)) for metric, found in values.items()},
        # With one run there is no deviation.
        "deviation": {m: float(np.std(x, ddof=1)) if len(x) > 1 else None for m, x in values.items()},
    }


def _final_run(
    system: System, log: Log, budget: Budget, chosen: dict[str, Any], out: Path, path: Path, progress: Any
) -> None:
    """Train with the settings chosen, stop by valid, measure on test, keep each user's metrics."""
    interval = min(budget.final_interval, budget.final_steps)
    config = make_config(
        system, budget, steps=budget.final_steps, interval=interval, patience=budget.patience, **chosen
    )
    folder = out / "work" / log.name / system.key / path.stem
    ranker, epochs = train_on(log, config, folder, progress)
    ranked = ranker.rank_task(log.test, log.rows)
    test = log.test.evaluate(ranked)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path.with_suffix(".parquet")) as users:
        frame = {metric: log.test.evaluate_users(ranked)[metric] for metric in METRICS}
        write_frame(pl.DataFrame({"user_id": log.interactions.user_ids[log.test.users], **frame}), users)
    points = curve(epochs, interval, SELECTED_BY)
    best = max(points, key=lambda point: point["valid"])
    record = {"seed": config.seed, "valid": best["valid"], "best_steps": best["steps"], "test": test, "curve": points}
    write_json(path, record)  # last: it says that the run is done
    shutil.rmtree(folder)


def _user_means(out: Path, log: Log, key: str, seeds: int) -> dict[str, Any]:
    """Each test user's metrics, averaged over the seeds."""
    frames = [pl.read_parquet(_run_path(out, log, key, seed).with_suffix(".parquet")) for seed in range(seeds)]
    return {metric: np.mean([frame[metric].to_numpy() for frame in frames], axis=0) for metric in METRICS}


def _compare(users: dict[str, Any], reference: dict[str, Any]) -> Results:
    """The difference from the reference system by metric, with its interval over users."""
    found = {metric: paired_bootstrap(users[metric], reference[metric]) for metric in METRICS}
    return {
        metric: {"difference": x.difference, "low": x.low, "high": x.high, "significant": x.significant}
        for metric, x in found.items()
    }


def _run_path(out: Path, log: Log, key: str, seed: int) -> Path:
    return out / "runs" / log.name / key / f"seed-{seed}.json"


def _require_same(out: Path, plan: Results, found: Results) -> None:
    """What is in the folder came from this budget, and from logs of the same content where names are the same."""
    for name, value in plan["budget"].items():
        if found["budget"].get(name) != value:
            was = found["budget"].get(name)
            raise InputError(f"--out {out}: was begun with {name} = {was}, found {value}; choose another folder")
    for name, content in plan["data"].items():
        if found["data"].setdefault(name, content) != content:
            raise InputError(f"--out {out}: was begun with another content of {name}; choose another folder")
    write_json(out / PLAN, found)


def _read_json(path: Path) -> Results:
    try:
        found: Results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return found


def write_json(path: Path, content: Results) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
