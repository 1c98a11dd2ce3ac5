"""What a training leaves in writing: the log of what was decided, TensorBoard's events, a progress bar."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command import call
from rich.console import Console

from cmi_fast import display as display_module
from cmi_fast import ranking
from cmi_fast.data.simulate import simulate
from cmi_fast.display import display
from cmi_fast.run import resume_run, train_run
from cmi_fast.trained_run import evaluate_run, recommend_run
from cmi_fast.training import checkpoint as checkpoints
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import Progress

SETTINGS = ["dim=8", "interests=2", "batch_size=32", "steps_per_epoch=8", "epochs=3", "max_history=20", "lr=0.01"]


def config(*settings: str) -> Config:
    return load_config(settings=[*SETTINGS, *settings])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    simulate(users=80, items=60, days=6, plays_per_user=20)[0].write_parquet(path)
    return path


class InterruptAt(Progress):
    def __init__(self, epoch: int, step: int) -> None:
        self.at = epoch, step

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if (epoch, step) == self.at:
            raise KeyboardInterrupt


def test_the_log_says_what_was_decided(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "TIMES_ITS_COST", 0.0)  # a checkpoint at the end of each epoch
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(log, run, config(), progress=InterruptAt(2, 3))
    metrics = resume_run(run)
    written = (run / "log.txt").read_text(encoding="utf-8")
    plays = pl.read_parquet(log)
    assert f"{len(plays):,} plays of 80 users on {plays['item_id'].n_unique()} items" in written
    assert "split by day: train " in written and "of days 5 to 5" in written
    for line in ("setting: lr = 0.01", "setting: epochs = 3", f"log: {log}", "model: cmi, ", "continuing in epoch 2"):
        assert line in written, line
    stages = [line.partition("stage: ")[2] for line in written.splitlines() if "  stage: " in line]
    assert stages == ["reading", "training", "reading", "training", "evaluating", "baselines", "report"]
    assert "training ended after epoch 3, the most allowed" in written
    assert f"the weights are those of epoch {metrics['best_epoch']}, best on valid" in written
    assert f"test recall@50 of item_knn: {metrics['baselines']['item_knn']['test']['recall@50']:.4f}" in written
    assert [line.split("  ")[1][:8] for line in written.splitlines() if "  epoch " in line] == [
        "epoch 1:",
        "epoch 2:",
        "epoch 3:",
    ]


def test_a_new_training_begins_a_new_log(log: Path, tmp_path: Path) -> None:
    train_run(log, tmp_path / "run", config("seed=7"))
    train_run(log, tmp_path / "run", config("patience=1", "lr=1e-9"))
    written = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "seed = 0" in written and "seed = 7" not in written
    assert "no better one in the last 1" in written


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) by tag."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reading.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_events_survive_an_interruption(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted where the last checkpoint is some steps old: they are trained again, and shown once."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(checkpoints, "TIMES_ITS_COST", 0.0)  # a checkpoint at the end of each epoch
    run = tmp_path / "run"
    metrics = train_run(log, tmp_path / "whole", config(), tensorboard=True)
    whole = scalars(tmp_path / "whole" / "tensorboard")
    for at in ((2, 5), (2, 6), (3, 1)):
        with pytest.raises(KeyboardInterrupt):
            if run.exists():
                resume_run(run, progress=InterruptAt(*at))
            else:
                train_run(log, run, config(), progress=InterruptAt(*at), tensorboard=True)
    resume_run(run)
    shown = scalars(run / "tensorboard")
    assert [step for step, _ in shown["loss/total"]] == list(range(1, 25))
    del shown["epoch/seconds"], whole["epoch/seconds"]
    assert shown == whole
    assert shown["epoch/recall@50"] == [
        (8 * epoch["number"], pytest.approx(epoch["valid"]["recall@50"])) for epoch in metrics["epochs"]
    ]


def test_without_tensorboard_the_option_says_what_to_install(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = call(capsys, "train", log, "--out", tmp_path / "run", "--tensorboard")
    assert code == 2 and "pip install tensorboard" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_nothing_elsewhere(
    log: Path, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(log, tmp_path / "run", config("epochs=1"))
    shown = io.StringIO()

    def console(**options: Any) -> Console:
        return Console(file=shown, force_terminal=terminal, width=100, **options)

    monkeypatch.setattr(display_module, "Console", console)
    with display("reading") as progress:
        progress.bar.refresh()
        recommend_run(tmp_path / "run", tmp_path / "o.csv", 5, progress=progress)
        progress.users(80, 80)
        progress.bar.refresh()
        progress.phase("another")
        progress.bar.refresh()
    lines = shown.getvalue().splitlines()
    assert any("reading" in line for line in lines) == terminal
    assert any("80/80" in line and "writing" in line for line in lines) == terminal
    assert not any("80" in line and "another" in line for line in lines)


def test_ranking_reports_its_users(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Recorder(Progress):
        def phase(self, name: str) -> None:
            seen.append(name)

        def users(self, done: int, of: int) -> None:
            seen.append((done, of))

    train_run(log, tmp_path / "run", config("epochs=1"))
    monkeypatch.setattr(ranking, "USERS_AT_ONCE", 50)
    recommend_run(tmp_path / "run", tmp_path / "o.csv", 5, progress=Recorder())
    assert seen == ["reading", "ranking", (50, 80), (80, 80), "writing"]
    seen.clear()
    evaluate_run(tmp_path / "run", progress=Recorder())
    assert [event for event in seen if isinstance(event, str)] == ["reading", "evaluating", "baselines"]
