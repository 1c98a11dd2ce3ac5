"""Training that is interrupted, killed or goes wrong loses nothing: resumed, it ends with the same bits."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors
import safetensors.torch
import torch

from cmi_fast import cli
from cmi_fast.data.simulate import simulate
from cmi_fast.display import Display
from cmi_fast.errors import InputError
from cmi_fast.run import resume_run, train_run
from cmi_fast.run_folder import CHECKPOINT
from cmi_fast.trained_run import evaluate_run
from cmi_fast.training import checkpoint as checkpoints
from cmi_fast.training.checkpoint import Epoch, read_checkpoint
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import Progress

SETTINGS = ["dim=8", "interests=2", "batch_size=32", "steps_per_epoch=8", "epochs=4", "max_history=20", "lr=0.01"]
ANNEALED = ["share_weight=1", "first_assignment_temperature=1", "annealing_steps=25"]  # until after the interruption
SAME = {"config.toml", "items.parquet", "model.safetensors", "users.parquet"}  # to the bit
FILES = SAME | {"metrics.json", "report.html", "log.txt"}


def config(*settings: str) -> Config:
    return load_config(settings=[*SETTINGS, *settings])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    simulate(users=80, items=60, days=6, plays_per_user=20)[0].write_parquet(path)
    return path


@pytest.fixture(scope="module")
def whole(log: Path) -> Path:
    """A training that nothing interrupted."""
    train_run(log, log.parent / "whole", config())
    return log.parent / "whole"


@pytest.fixture
def checkpoint_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoints, "TIMES_ITS_COST", 0.0)


def metrics(run: Path) -> dict[str, Any]:
    """All but times."""
    loaded: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    for epoch in loaded["epochs"]:
        del epoch["seconds"]
    return loaded


def assert_same(run: Path, whole: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(run) == metrics(whole)


class InterruptAt(Progress):
    """Ctrl-C when a step of an epoch is done, or, with step 0, when the epoch is."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = epoch, step
        self.resumed: tuple[int, int] | None = None

    def resume(self, epoch: int, step: int) -> None:
        self.resumed = epoch, step

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if (epoch, step) == self.at:
            raise KeyboardInterrupt

    def epoch(self, epoch: Epoch, best: bool) -> None:
        if (epoch.number, 0) == self.at:
            raise KeyboardInterrupt


def interrupt(log: Path, run: Path, epoch: int, step: int, *settings: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_run(log, run, config(*settings), progress=InterruptAt(epoch, step))


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 5), (1, 0), (2, 8), (4, 3), (4, 0)])
@pytest.mark.usefixtures("checkpoint_every_step")
def test_a_resumed_training_ends_with_the_same_bits(
    log: Path, whole: Path, tmp_path: Path, epoch: int, step: int
) -> None:
    run = tmp_path / "run"
    interrupt(log, run, epoch, step)
    never = InterruptAt(0, 0)
    resume_run(run, progress=never)
    assert never.resumed == ((epoch, step - 1) if step else (epoch + 1, 0))  # the step's own checkpoint comes after it
    assert_same(run, whole)


def test_without_a_checkpoint_since_the_start_it_starts_again(log: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt(log, run, 1, 5)
    with pytest.raises(InputError, match=f"before its first epoch ended .cmi-fast train --resume {run} continues"):
        evaluate_run(run)
    never = InterruptAt(0, 0)
    resume_run(run, progress=never)
    assert never.resumed == (1, 0)
    assert_same(run, whole)


def test_the_best_epoch_is_kept_with_its_own_temperature(log: Path, tmp_path: Path) -> None:
    metrics = train_run(log, tmp_path / "run", config(*ANNEALED, "dim=4", "lr=0.1"))
    steps = 8 * metrics["best_epoch"]
    assert steps < 32  # a later epoch had another temperature
    kept = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")["assignment_temperature"]
    assert kept.item() == pytest.approx(0.1 ** min(1, (steps - 1) / 25))
    assert evaluate_run(tmp_path / "run")["test"] == metrics["test"]


@pytest.mark.usefixtures("checkpoint_every_step")
def test_interrupted_twice_with_early_stopping(log: Path, tmp_path: Path) -> None:
    settings = ["patience=1", "epochs=30", "lr=0.05", "samples_per_user=3", "disjoint_views=true"]
    train_run(log, tmp_path / "whole", config(*settings))
    run = tmp_path / "run"
    interrupt(log, run, 1, 4, *settings)
    with pytest.raises(KeyboardInterrupt):
        resume_run(run, progress=InterruptAt(2, 2))
    resume_run(run)
    assert_same(run, tmp_path / "whole")


@pytest.mark.parametrize("settings", [["optimizer=lazy-adam"], ["precision=bf16"], ["average_epochs=2"], ANNEALED])
@pytest.mark.usefixtures("checkpoint_every_step")
def test_resumed_with_other_settings(log: Path, tmp_path: Path, settings: list[str]) -> None:
    train_run(log, tmp_path / "whole", config(*settings))
    interrupt(log, tmp_path / "run", 3, 4, *settings)
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


CHILD = """
import sys
from pathlib import Path
from cmi_fast.run import resume_run, train_run
from cmi_fast.run_folder import CHECKPOINT
from cmi_fast.training import checkpoint as checkpoints
from cmi_fast.training.config import load_config
from cmi_fast.training.trainer import Progress

class Say(Progress):
    def phase(self, name):
        print(name, flush=True)

checkpoints.SECONDS_BETWEEN = checkpoints.TIMES_ITS_COST = 0.0
log, run, settings = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
if (run / CHECKPOINT).exists():
    resume_run(run, progress=Say())
else:
    train_run(log, run, load_config(settings=settings), progress=Say())
"""


def kill_and_resume(log: Path, run: Path, kills: int, seed: int) -> None:
    """Start or continue the training in processes of their own, which die at random moments; let the last one end."""
    moments = random.Random(seed)
    sent = died = 0
    while not (run / "metrics.json").exists():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(log), str(run), *SETTINGS], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        while child.stdout.readline().strip() not in ("training", ""):
            pass
        if sent < kills:
            time.sleep(moments.uniform(0, 0.15))
            child.kill()
            sent += 1
        assert child.wait() in (0, -9)
        died += child.returncode == -9
    assert died > 0


def test_killed_three_times(log: Path, whole: Path, tmp_path: Path) -> None:
    kill_and_resume(log, tmp_path / "run", kills=3, seed=0)
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_twenty_times(log: Path, whole: Path, tmp_path: Path) -> None:
    kill_and_resume(log, tmp_path / "run", kills=20, seed=1)
    assert_same(tmp_path / "run", whole)


@pytest.mark.usefixtures("checkpoint_every_step")
def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_last_good_state(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmi_fast.training import trainer

    steps = 0
    real = trainer._step

    def poisoned(*arguments: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        losses = real(*arguments)
        if steps == 13:  # its loss is still a number, as the weights it leaves are used by the next
            arguments[0].categories.data[0, 0] = torch.nan
        return losses

    monkeypatch.setattr(trainer, "_step", poisoned)
    run = tmp_path / "run"
    with pytest.raises(InputError, match="epoch 2, step 5: found values in categories that are no finite numbers"):
        train_run(log, run, config())
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 3600.0)
    steps = 0
    with pytest.raises(InputError, match="epoch 2, step 6: the loss became nan"):
        train_run(log, tmp_path / "seldom", config())
    for folder, done in ((run, 12), (tmp_path / "seldom", 8)):
        state, tensors = read_checkpoint(folder / CHECKPOINT)
        assert state.done.steps == done
        assert all(value.isfinite().all() for value in tensors.values())
        kept = safetensors.torch.load_file(folder / "model.safetensors")
        assert all(value.isfinite().all() for value in kept.values())


def test_a_new_training_leaves_nothing_of_the_old(log: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt(log, run, 3, 1, "seed=5")
    (run / f".{'0' * 32}.safetensors").write_bytes(b"half")  # what a kill leaves
    train_run(log, run, config())
    assert_same(run, whole)


def test_what_cannot_be_resumed(log: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this training is complete"):
        resume_run(whole)
    with pytest.raises(InputError, match="found none"):
        resume_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="training had not begun"):
        resume_run(tmp_path)
    run = tmp_path / "run"
    other = tmp_path / "other.parquet"
    pl.read_parquet(log).write_parquet(other)
    interrupt(other, run, 2, 1)
    good = (run / CHECKPOINT).read_bytes()
    for content, message in (
        (b"", "no complete checkpoint"),
        (good[:-10], "no complete checkpoint"),
        (good.replace(b'\\"format\\":1', b'\\"format\\":2'), "no checkpoint of this version: format"),
        (good.replace(b'\\"steps\\"', b'\\"stops\\"'), "no checkpoint of this version"),
        (safetensors.torch.save({"a": torch.zeros(1)}), "no checkpoint of this version"),
    ):
        assert content != good
        (run / CHECKPOINT).write_bytes(content)
        with pytest.raises(InputError, match=message):
            resume_run(run)
    (run / CHECKPOINT).write_bytes(good)
    pl.read_parquet(log).head(-200).write_parquet(other)
    with pytest.raises(InputError, match="has changed since the training in"):
        resume_run(run)


def test_a_checkpoint_that_cannot_be_written_is_said_in_one_line(log: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 3,000 bytes, as on a full disk; the checkpoint from before stays."""
    run = tmp_path / "run"
    interrupt(log, run, 2, 1)
    before = (run / CHECKPOINT).read_bytes()
    state, tensors = read_checkpoint(run / CHECKPOINT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"{CHECKPOINT}: cannot be written: ") as raised:
            checkpoints.write_checkpoint(run / CHECKPOINT, state, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert (run / CHECKPOINT).read_bytes() == before
    assert not list(run.glob(".*"))


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Exit code and error output of ``cmi-fast train``."""
    monkeypatch.setattr(sys, "argv", ["cmi-fast", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.usefixtures("checkpoint_every_step")
def test_the_command_line_says_how_to_go_on(
    log: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    with monkeypatch.context() as context:
        context.setattr(Display, "epoch", InterruptAt(2, 0).epoch)
        code, error = call(capsys, monkeypatch, log, "--out", run, *options)
    assert code == 130
    assert error == f"cmi-fast: interrupted; to continue: cmi-fast train --resume {run}\n"
    with pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, "argv", ["cmi-fast", "train", "--resume", str(run)])
        cli.main()
    assert not stop.value.code
    assert "continuing in epoch 3 after step 0" in capsys.readouterr().out
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a log and --out, or --resume"),
        (["log.csv"], "expected a log and --out, or --resume"),
        (["--resume", "nowhere"], "--resume nowhere: expected the folder of a training that was interrupted"),
        (["--resume", "nowhere", "--set", "lr=1"], "--resume: expected no other arguments"),
        (["log.csv", "--resume", "nowhere"], "--resume: expected no other arguments"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, error = call(capsys, monkeypatch, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1
