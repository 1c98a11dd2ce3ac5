"""train --profile: where the time of a step goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import needs_native
from command import call

from cmi_fast.training.profile import STEPS, StepProfile

PARTS = ["item_soft_assignment_pool", "item_gru", "nt_xent_loss", "interest_softmax_loss", "optimizer"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cmi_fast.data.simulate import write_simulation

    path = tmp_path_factory.mktemp("log") / "log.parquet"
    write_simulation(path, seed=0, users=150, items=300, days=6, plays_per_user=40)
    return path


def train(log: Path, capsys: pytest.CaptureFixture[str], steps: int, *options: str) -> dict[str, list[str]]:
    """The rows of the table that was printed, by name."""
    settings = [f"steps_per_epoch={steps}", "epochs=2", "batch_size=64", "dim=16"]
    arguments = [x for setting in settings for x in ("--set", setting)]
    code, out, err = call(capsys, "train", log, "--out", log.parent / "run", "--overwrite", *arguments, *options)
    assert code == 0, err
    lines = out.splitlines()
    first = [i for i, line in enumerate(lines) if line.startswith("mean of")]
    assert len(first) == ("--profile" in options)
    rows: dict[str, list[str]] = {}
    for line in lines[first[0] :] if first else []:
        *name, ms, share = line.split()
        rows[" ".join(name)] = [ms, share]
        if name == ["a", "step"]:
            break
    return rows


@needs_native
@pytest.mark.parametrize("steps", [2, 6, STEPS + 9])
def test_the_parts_of_a_step_add_up(log: Path, capsys: pytest.CaptureFixture[str], steps: int) -> None:
    rows = train(log, capsys, steps, "--profile")
    measured = {2: 1, 6: 3, STEPS + 9: STEPS}[steps]
    assert rows.pop(f"mean of {measured} steps") == ["ms", "share"]
    assert set(rows) == {*PARTS, "waiting for the batch", "everything else", "a step"}
    ms = {name: float(row[0]) for name, row in rows.items()}
    whole = ms.pop("a step")
    assert rows["a step"][1] == "100%"
    assert all(value >= 0 for value in ms.values())
    assert all(ms[name] > 0 for name in PARTS if name != "optimizer")
    assert sum(ms.values()) == pytest.approx(whole, abs=0.05 * len(rows))


def test_nothing_is_measured_where_nobody_asks(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(log, capsys, 6) == {}


def test_an_epoch_of_one_step_has_nothing_to_measure() -> None:
    profile = StepProfile()
    assert [profile.step(1, 1) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "--profile: expected --device cpu, whose time it measures, found cuda"),
        (["--rolling", "4:5"], "--rolling: expected no --overwrite, --profile or --tensorboard"),
    ],
)
def test_what_cannot_be_profiled(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, _, err = call(capsys, "train", log, "--out", tmp_path / "run", "--profile", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()
