"""The search for settings: its trials, what is pruned, what diverges, what a kill leaves; and the sheets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmi_fast.data.simulate import simulate
from cmi_fast.errors import InputError
from cmi_fast.experiments import search as searching
from cmi_fast.experiments.plan import CMI, INTERESTS, SYSTEMS, Budget, System, Table
from cmi_fast.experiments.search import make_config, search
from cmi_fast.experiments.sheets import Cell, result_sheets
from cmi_fast.experiments.training import Log, train_on
from cmi_fast.training.checkpoint import Epoch
from cmi_fast.training.config import Config, Source
from cmi_fast.training.trainer import Progress

pytest.importorskip("optuna")

BUDGET = Budget(trials=8, steps=60, trial_interval=10)
LOG: Any = SimpleNamespace(name="log")


def run(out: Path, system: System = CMI) -> list[dict[str, Any]]:
    return search(LOG, system, BUDGET, out, lambda part, steps: Progress())


def curves(value: Callable[[Config], float]) -> Callable[..., None]:
    """In place of training: valid metrics that rise to ``value``."""

    def train_on(log: Log, config: Config, folder: Path, progress: Progress) -> None:
        for number in range(1, config.epochs + 1):
            valid = {"recall@50": value(config) * number / config.epochs}
            progress.epoch(Epoch(number, {}, valid, 1.0), best=True)

    return train_on


def prefers_four(config: Config) -> float:
    return 1 / (1 + abs(config.interests - 4)) - config.lr


def test_every_number_of_interests_is_tried_and_the_best_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "train_on", curves(prefers_four))
    trials = run(tmp_path)
    assert len(trials) == 8 and sorted(trial["number"] for trial in trials) == list(range(8))
    by_number = sorted(trials, key=lambda trial: trial["number"])
    assert tuple(trial["settings"]["interests"] for trial in by_number[:5]) == INTERESTS
    assert len({trial["settings"]["lr"] for trial in trials}) == 8
    best = trials[0]
    assert best["settings"]["interests"] == 4 and best["state"] == "complete"
    assert all(trial["valid"] <= best["valid"] for trial in trials)
    # What lags behind the median of the others is given up before its last step, and not before a third of them.
    pruned = [trial["curve"][-1]["steps"] for trial in trials if trial["state"] == "pruned"]
    assert pruned and all(20 <= steps < 60 for steps in pruned)


def test_a_search_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = curves(prefers_four)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    monkeypatch.setattr(searching, "train_on", ordinary)
    expected = run(whole)
    for survives in (0, 2, 4):
        begun = 0

        def die(log: Log, config: Config, folder: Path, progress: Progress, survives: int = survives) -> None:
            nonlocal begun
            begun += 1
            if begun > survives:
                raise KeyboardInterrupt
            ordinary(log, config, folder, progress)

        monkeypatch.setattr(searching, "train_on", die)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    monkeypatch.setattr(searching, "train_on", ordinary)
    assert run(killed) == expected


def test_a_diverged_trial_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = curves(prefers_four)

    def diverges(log: Log, config: Config, folder: Path, progress: Progress) -> None:
        if config.interests == 4:
            raise InputError("the loss became nan")
        ordinary(log, config, folder, progress)

    monkeypatch.setattr(searching, "train_on", diverges)
    trials = run(tmp_path)
    assert len(trials) == 8
    diverged = [trial for trial in trials if trial["state"] == "diverged"]
    assert diverged and all(trial["settings"]["interests"] == 4 for trial in diverged)
    assert diverged[0]["error"] == "the loss became nan" and trials[0]["settings"]["interests"] != 4


def test_all_diverged_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*arguments: object) -> None:
        raise InputError("the loss became nan")

    monkeypatch.setattr(searching, "train_on", diverges)
    with pytest.raises(InputError, match="CMI on log: no trial could be completed: the loss became nan"):
        run(tmp_path)


def test_the_search_never_looks_at_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.parquet"
    simulate(users=40, items=30, days=5)[0].write_parquet(path)
    log = Log.read(Source(path=str(path)))

    def fail(self: Log) -> None:
        raise AssertionError("a trial asked for the test part")

    monkeypatch.setattr(Log, "test", property(fail))
    budget = Budget(trials=1, steps=4, trial_interval=2, settings={"batch_size": 16, "dim": 8})
    trials = search(log, CMI, budget, tmp_path, lambda part, steps: Progress())
    assert trials[0]["state"] == "complete" and 0 < trials[0]["valid"] <= 1
    assert [point["steps"] for point in trials[0]["curve"]] == [2, 4]
    with pytest.raises(AssertionError):
        _ = log.test


def test_a_training_that_was_killed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    simulate(users=40, items=30, days=5)[0].write_parquet(path)
    log = Log.read(Source(path=str(path)))
    budget = Budget(settings={"batch_size": 16, "dim": 8})
    config = make_config(CMI, budget, steps=12, interval=3, patience=9, interests=2, lr=0.01)
    whole, expected = train_on(log, config, tmp_path / "whole", Progress())

    class Dies(Progress):
        def epoch(self, epoch: Epoch, best: bool) -> None:
            if epoch.number == 2:
                raise KeyboardInterrupt

    class Counts(Progress):
        steps = 0

        def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
            self.steps += 1

    with pytest.raises(KeyboardInterrupt):
        train_on(log, config, tmp_path / "killed", Dies())
    progress = Counts()
    again, epochs = train_on(log, config, tmp_path / "killed", progress)
    assert progress.steps in (6, 9)  # a checkpoint costs time, and so not every epoch writes one
    assert [epoch.valid for epoch in epochs] == [epoch.valid for epoch in expected]
    for name, value in whole.model.state_dict().items():
        assert value.equal(again.model.state_dict()[name]), name
    # Other settings do not go on from this folder.
    other = config.model_copy(update={"seed": 1})
    progress = Counts()
    train_on(log, other, tmp_path / "killed", progress)
    assert progress.steps == 12


def test_every_system_gets_the_same_work() -> None:
    configs = [
        make_config(system, Budget(), steps=1500, interval=250, patience=6, interests=4, lr=0.01)
        for systems in SYSTEMS.values()
        for system in systems
    ]
    work = {(c.batch_size, c.dim, c.max_history, c.steps_per_epoch, c.epochs, c.interests, c.lr) for c in configs}
    assert work == {(256, 64, 100, 250, 6, 4, 0.01)}
    by_key = {system.key: config for system, config in zip(SYSTEMS[Table.table1], configs, strict=False)}
    assert by_key["cmi-authors"].disjoint_views and not by_key["cmi-paper"].unit_interests
    assert by_key["mind"].model == "mind"


def result(table: str, recalls: dict[str, float], reference: str) -> dict[str, Any]:
    names = {system.key: system.name for system in SYSTEMS[Table(table)]}
    metrics = [f"{kind}@{k}" for kind in ("recall", "hitrate") for k in (10, 20, 50)]
    interval = {"difference": -0.01, "low": -0.02, "high": -0.001, "significant": True}
    against = {metric: {**interval} for metric in metrics}
    trial = {"number": 0, "state": "complete", "settings": {"interests": 8, "lr": 0.001}, "valid": 0.2}
    systems = [
        {
            "key": key,
            "name": names[key],
            "chosen": {"interests": 8, "lr": 0.001},
            "trials": [{**trial, "curve": [{"steps": 5}]}],
            "mean": dict.fromkeys(metrics, recall),
            "deviation": dict.fromkeys(metrics, 0.001),
            **({} if key == reference else {"against": against}),
        }
        for key, recall in recalls.items()
    ]
    data = {"name": "log", "reference": reference, "systems": systems, "baselines": {}}
    return {"table": table, "data": [data]}


def test_table_1_marks_improvement_and_the_papers_figures() -> None:
    sheet, trials = result_sheets(result("table1", {"mind": 0.2, "comirec-dr": 0.25, "cmi": 0.3}, "cmi"))
    cells = [list(row) for row in sheet.rows]
    assert cells[0][2].mark == "" and cells[1][2] == Cell("0.2500 ± 0.0010", "second")
    assert cells[2][2] == Cell("0.3000 ± 0.0010", "best")
    assert cells[0][8].text == "-0.0100 [-0.0200, -0.0010] *" and cells[2][8].text == ""
    assert [cell.text for cell in cells[0][9:12]] == ["0.0296", "0.0521", "0.1025"]
    assert [cell.text for cell in cells[1][9:]] == ["-"] * 6
    assert cells[3][2].text == "+20.0%" and cells[3][9].text == "+43.2%"  # .3 / .25, .0424 / .0296
    assert "CMI has place 1 of 3" in sheet.notes[0] and "ComiRec-DR" in sheet.notes[0]
    assert len(trials.rows) == 3


def test_table_3_gives_declines_in_per_cent() -> None:
    sheet, _ = result_sheets(result("table3", {"cmi": 0.4, "cmi-cl": 0.3, "cmi-g": 0.38}, "cmi"))
    assert sheet.rows[0][2].text == "0.4000 ± 0.0010" and sheet.rows[1][2].text == "0.3000 ± 0.0010 (-25.0%)"
    assert sheet.rows[1][9].text == "0.0390 (-8.0%)"  # the paper's .0390 / .0424
    assert "the contrastive loss helps. By Recall@50 this is so here" in sheet.notes[0]


def test_table_4_says_whether_8_beat_1() -> None:
    recalls = {f"cmi-m{m}": 0.1 + m / 100 for m in sorted(INTERESTS)}
    sheet, _ = result_sheets(result("table4", recalls, "cmi-m8"))
    assert len(sheet.rows) == 5 and "8 interests beat 1. By Recall@50 this is so here" in sheet.notes[0]
    assert sheet.rows[0][9].text == "0.0303" and sheet.rows[3][11] == Cell("0.1364")
