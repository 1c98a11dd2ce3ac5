"""Rolling tests: what each training may see, what is kept of each user, and what a comparison makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command import call

from cmi_fast.data.simulate import simulate
from cmi_fast.errors import InputError
from cmi_fast.evaluation import paired_bootstrap
from cmi_fast.rolling import METRICS, Days, Rolling, differences, train_rolling
from cmi_fast.run import train_run
from cmi_fast.training.config import Config, Source, load_config
from cmi_fast.training.trainer import Progress

SETTINGS = ["dim=8", "interests=2", "batch_size=32", "steps_per_epoch=4", "epochs=2", "max_history=20", "seed=3"]
FLAGS = [part for setting in SETTINGS for part in ("--set", setting)]
NAMES = {f"{day}-{which}" for day in (4, 5) for which in ("3", "4", "baselines")}


def config(*settings: str) -> Config:
    return load_config(settings=[*SETTINGS, *settings])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    simulate(users=80, items=60, days=7, plays_per_user=20)[0].write_parquet(path)
    return path


@pytest.fixture(scope="module")
def rolled(log: Path) -> Path:
    """Test days 4 and 5 of days 0 to 6, seeds 3 and 4."""
    train_rolling(Source(path=str(log)), log.parent / "rolled", config(), Days(4, 5), 2)
    return log.parent / "rolled"


def test_every_day_and_seed_is_a_run_of_the_days_until_then(log: Path, rolled: Path, tmp_path: Path) -> None:
    assert {path.name for path in rolled.iterdir()} == NAMES
    plays = pl.read_parquet(log)
    for day, seed in ((4, 3), (5, 4)):
        plays.filter(pl.col("day") <= day).write_parquet(tmp_path / f"{day}.parquet")
        alone = train_run(tmp_path / f"{day}.parquet", tmp_path / f"{day}", config(f"seed={seed}"))
        metrics = json.loads((rolled / f"{day}-{seed}" / "metrics.json").read_text())
        for part in ("valid", "test"):
            assert metrics[part] == alone[part]
        baselines = json.loads((rolled / f"{day}-baselines" / "metrics.json").read_text())
        assert baselines == alone["baselines"]
        assert (rolled / f"{day}-{seed}" / "model.safetensors").read_bytes() == (
            tmp_path / f"{day}" / "model.safetensors"
        ).read_bytes()


def test_each_users_metrics_have_the_means_of_all(rolled: Path) -> None:
    for run in rolled.iterdir():
        metrics = json.loads((run / "metrics.json").read_text())
        systems = metrics if run.name.endswith("baselines") else {"cmi": metrics}
        frame = pl.read_parquet(run / "user_metrics.parquet")
        assert set(frame["system"]) == set(systems)
        for name, metric in systems.items():
            for part in ("valid", "test"):
                means = frame.filter(system=name, part=part).select(pl.col(METRICS).mean()).row(0, named=True)
                assert means == pytest.approx({key: metric[part][key] for key in METRICS}, abs=1e-12)


def test_what_is_complete_is_not_done_again_and_what_is_missing_is(log: Path, rolled: Path) -> None:
    files = [path for path in rolled.rglob("*") if path.is_file() and "4-3" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in files}
    expected = pl.read_parquet(rolled / "4-3" / "user_metrics.parquet")
    for path in (rolled / "4-3").iterdir():
        path.unlink()
    began: list[str] = []
    train_rolling(Source(path=str(log)), rolled, config(), Days(4, 5), 2, on_run=began.append)
    assert began == ["4-3"]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert pl.read_parquet(rolled / "4-3" / "user_metrics.parquet").equals(expected)


def test_an_interrupted_training_goes_on(log: Path, rolled: Path, tmp_path: Path) -> None:
    class Interrupt(Progress):
        def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
            if (epoch, step) == (2, 2):
                raise KeyboardInterrupt

    source = Source(path=str(log))
    with pytest.raises(KeyboardInterrupt):
        train_rolling(source, tmp_path / "out", config(), Days(4, 5), 2, progress=Interrupt())
    with pytest.raises(InputError, match="4-3: is not complete"):
        Rolling.read(tmp_path / "out")
    train_rolling(source, tmp_path / "out", config(), Days(4, 5), 2)
    assert Rolling.read(tmp_path / "out").frame.equals(Rolling.read(rolled).frame)


def test_each_run_compares_its_categories_with_known_ones(log: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    pl.DataFrame({"item_id": range(60), "category": [item % 3 for item in range(60)]}).write_csv(known)
    train_rolling(Source(path=str(log)), tmp_path / "out", config(), Days(4, 4), 1, item_categories=known)
    metrics = json.loads((tmp_path / "out" / "4-3" / "metrics.json").read_text())
    assert 0 <= metrics["categories"]["nmi"] <= 1 and metrics["categories"]["file"] == str(known)


def test_rolling_reads_means_over_seeds(rolled: Path) -> None:
    found = Rolling.read(rolled)
    assert (found.model, found.part) == ("cmi", "test")
    two = [pl.read_parquet(rolled / f"5-{seed}" / "user_metrics.parquet").filter(part="test") for seed in (3, 4)]
    means = (two[0]["recall@50"] + two[1]["recall@50"]) / 2
    mine = found.of("cmi").filter(day=5)
    assert mine["user_id"].to_list() == two[0]["user_id"].to_list()
    assert mine["recall@50"].to_list() == means.to_list()
    assert found.by_seed.filter(day=5)["recall@50"].to_list() == pytest.approx([x["recall@50"].mean() for x in two])
    assert set(found.frame["system"]) == {"cmi", "item_knn", "item_knn_recent", "popularity", "recent_popularity"}


def test_differences_are_paired_over_users(rolled: Path) -> None:
    found = Rolling.read(rolled)
    a, b = found.of("cmi"), found.of("item_knn")
    result = differences(a, b.sample(fraction=1.0, shuffle=True, seed=0), ("recall@50",))["recall@50"]
    pairs = a.join(b, on=["day", "user_id"]).sort("day", "user_id")
    columns = (pairs[name].to_numpy() for name in ("recall@50", "recall@50_right", "user_id"))
    assert result == paired_bootstrap(*columns)
    one_day = differences(a, b.filter(day=4), ("recall@50",))["recall@50"]
    assert one_day.mean_a == pytest.approx(a.filter(day=4)["recall@50"].mean())
    for other in (b.filter(day=9), b[1:]):
        with pytest.raises(InputError, match="same log with a day in common"):
            differences(a, other)


def test_no_test_neither_computes_nor_shows_the_test_day(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test day's items are shuffled: with --no-test nothing changes."""
    plays = pl.read_parquet(log)
    items = pl.Series(np.random.default_rng(1).permutation(plays["item_id"].to_numpy()))
    other = tmp_path / "other.parquet"
    plays.with_columns(item_id=pl.when(pl.col("day") == 5).then(items).otherwise("item_id")).write_parquet(other)
    frames = []
    for name, data in (("a", log), ("b", other)):
        arguments = ["train", data, "--rolling", "5:5", "--no-test", "--out", tmp_path / name, *FLAGS]
        code, out, err = call(capsys, *arguments)
        assert code == 0, err
        assert "valid metrics, test days [5]" in out and "test metrics" not in out
        frames.append(Rolling.read(tmp_path / name).frame)
        for run in (tmp_path / name).iterdir():
            assert set(pl.read_parquet(run / "user_metrics.parquet")["part"]) == {"valid"}
        assert "test" not in json.loads((tmp_path / name / "5-3" / "metrics.json").read_text())
    assert frames[0].equals(frames[1])
    code, _, err = call(capsys, *[x for x in arguments if x != "--no-test"])
    assert code == 2 and "5-baselines: was evaluated without the test day (--no-test)" in err
    code, out, err = call(capsys, "train", log, "--no-test", "--out", tmp_path / "single", *FLAGS)
    assert code == 0, err
    assert any(line.startswith("valid ") for line in out.splitlines())
    assert not any(line.startswith("test ") for line in out.splitlines())


def test_compare_prints_differences_with_intervals(
    log: Path, rolled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train_rolling(Source(path=str(log)), other, config("lr=0.05"), Days(5, 5), 1)
    code, out, err = call(capsys, "compare", rolled, other)
    assert code == 0, err
    blocks = out.strip().split("\n\n")
    assert "test metrics, test days [4, 5], mean over 2 seeds" in blocks[0]
    assert blocks[1].splitlines()[0] == f"b = {other}"
    assert {block.splitlines()[0] for block in blocks[2:]} == {
        "b = ItemKNN", "b = ItemKNN + recent popularity", "b = Popularity", "b = Recent popularity",
    }  # fmt: skip
    row = next(line for line in blocks[1].splitlines() if line.startswith("recall@50")).split()
    found = differences(Rolling.read(rolled).of("cmi"), Rolling.read(other).of("cmi"))["recall@50"]
    values = (found.mean_a, found.mean_b, found.difference, found.low, found.high)
    spread = Rolling.read(rolled).deviations()["recall@50"]
    assert row[1:] == [*(f"{value:.4f}" for value in values), f"{spread:.4f}", "-"]
    header, *_ = (block.splitlines()[1].split() for block in blocks if block.startswith("b = ItemKNN\n"))
    assert header[-2:] == ["sd", "a"]  # a baseline has no seeds


def test_the_spread_over_seeds_is_that_of_the_means_over_users_and_days(rolled: Path, tmp_path: Path) -> None:
    means = []
    for seed in (3, 4):
        frames = [pl.read_parquet(rolled / f"{day}-{seed}" / "user_metrics.parquet") for day in (4, 5)]
        means.append(pl.concat(frames).filter(part="test")["ndcg@10"].to_numpy().mean())
    assert Rolling.read(rolled).deviations()["ndcg@10"] == pytest.approx(np.std(means, ddof=1))
    for name in ("4-3", "5-3", "5-4"):  # seed 4 lacks a day: it does not count, and one seed has no spread
        (tmp_path / name).symlink_to(rolled / name)
    assert Rolling.read(tmp_path).deviations()["ndcg@10"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rolling", "5"], "--rolling 5: expected the first and the last test day, such as 11:14"),
        (["--rolling", "5:4"], "--rolling 5:4: expected"),
        (["--rolling", "5:7"], "test day 7: found no plays on day 7"),
        (["--rolling", "1:2"], "test day 1: found no plays before day 0"),
        (["--rolling", "5:5", "--seeds", "0"], "--seeds: expected 1 or more, found 0"),
        (["--rolling", "5:5", "--split", "last"], "--rolling: expected a split by day, found --split last"),
        (["--rolling", "5:5", "--overwrite"], "--rolling: expected no --overwrite"),
        (["--seeds", "2"], "--seeds: expected --rolling beside it"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "train", log, "--out", tmp_path / "out", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_folders_and_other_settings_are_refused(
    log: Path, rolled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", log, "--rolling", "4:5", "--seeds", "2"]
    for out, message in ((log.parent, "found log.parquet"), (rolled, "4-3: was trained with other settings: lr = ")):
        code, _, err = call(capsys, *arguments, "--out", out, *FLAGS, "--set", "lr=0.5")
        assert code == 2 and message in err and err.count("\n") == 1
    for folder, message in ((log.parent / "none", "found none"), (rolled / "4-3", "found config.toml in it")):
        code, _, err = call(capsys, "compare", folder)
        assert code == 2 and message in err and err.count("\n") == 1
