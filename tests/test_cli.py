"""The command line: a run from log to recommendations, and every mistake one line with exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import safetensors.torch
import torch
from command import SMALL, call, run
from real_logs import PARQUET, needs_real_logs

from cmi_fast.ops.backend import automatic_backends


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    done = run("simulate", path, "--users", 150, "--items", 300, "--days", 6)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def trained(log: Path) -> Path:
    out = log.parent / "run"
    done = run("train", log, "--out", out, "--item-categories", log.with_suffix(".truth.parquet"), *SMALL)
    assert done.returncode == 0, done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    return out


def test_train_leaves_a_complete_run(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "config.toml",
        "items.parquet",
        "log.txt",
        "metrics.json",
        "model.safetensors",
        "report.html",
        "stdout.txt",
        "users.parquet",
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    keys = {f"{metric}@{k}" for metric in ("recall", "hitrate", "ndcg", "mrr", "coverage") for k in (10, 20, 50)}
    for system in (metrics, *metrics["baselines"].values()):
        for day in ("valid", "test"):
            assert set(system[day]) == keys
            assert all(0 <= value <= 1 for value in system[day].values())
    assert set(metrics["baselines"]) == {"item_knn", "item_knn_recent", "popularity", "recent_popularity"}
    assert metrics["policy"]["history"].startswith("all plays before")
    assert 0 <= metrics["categories"]["nmi"] <= 1
    assert len(metrics["epochs"]) == 2
    assert metrics["valid"]["recall@50"] == max(epoch["valid"]["recall@50"] for epoch in metrics["epochs"])


def test_the_printed_table_is_whole(trained: Path) -> None:
    printed = (trained / "stdout.txt").read_text()
    header = next(line for line in printed.splitlines() if line.startswith("test"))
    columns = ["Recall@10", "Recall@20", "Recall@50", "HitRate@10", "HitRate@20", "HitRate@50"]
    assert header.split() == ["test", *columns]
    for name in ("CMI", "ItemKNN", "Popularity", "Recent popularity"):
        assert any(line.startswith(name) and len(line.split()) >= 7 for line in printed.splitlines())
    assert "NMI 0." in printed
    assert "…" not in printed and "\x1b" not in printed


def test_evaluate_repeats_the_metrics(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "evaluate", trained, "--json")
    assert code == 0
    again, metrics = json.loads(out), json.loads((trained / "metrics.json").read_text())
    for key in ("valid", "test", "baselines", "policy"):
        assert again[key] == metrics[key]


def test_weights_of_a_training_that_is_not_complete_are_used_and_it_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    code, complete, errors = call(capsys, "evaluate", run, "--json")
    assert code == 0
    assert "note:" not in errors
    (run / "checkpoint.safetensors").touch()
    code, out, errors = call(capsys, "evaluate", run, "--json")
    assert (code, out) == (0, complete)
    note = f"note: this training is not complete, these are its best weights so far; cmi-fast train --resume {run}"
    assert note in errors
    assert note in call(capsys, "recommend", run, "--out", tmp_path / "lists.csv")[2]


def test_training_is_deterministic(trained: Path, log: Path, tmp_path: Path) -> None:
    assert run("train", log, "--out", tmp_path / "again", *SMALL).returncode == 0
    first, second = ((run_ / "model.safetensors").read_bytes() for run_ in (trained, tmp_path / "again"))
    assert first == second


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_recommend(trained: Path, log: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / name
    code, _, err = call(capsys, "recommend", trained, "--k", 7, "--out", out)
    assert code == 0, err
    frame = pl.read_csv(out) if name.endswith("csv") else pl.read_parquet(out)
    plays = pl.read_parquet(log)
    assert frame.columns == ["user_id", "item_id", "score", "rank"]
    assert set(frame["user_id"]) == set(plays["user_id"])
    assert frame.group_by("user_id").len()["len"].unique().to_list() == [7]
    assert frame.join(plays, on=["user_id", "item_id"]).is_empty()
    assert frame.sort("user_id", "rank").equals(frame.sort("user_id", "score", descending=[False, True]))


def test_recommend_for_another_log(
    trained: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is inductive: new users, and items it does not know, which it ignores."""
    known = pl.read_parquet(log)["item_id"].unique().sort()[:3].to_list()
    other = tmp_path / "other.csv"
    pl.DataFrame(
        {"user_id": ["new"] * 4 + ["cold"], "item_id": [*known, 10**6, 10**6 + 1], "day": [0, 1, 2, 2, 2]}
    ).write_csv(other)
    code, _, err = call(capsys, "recommend", trained, "--k", 5, "--out", tmp_path / "o.csv", "--data", other)
    assert code == 0, err
    frame = pl.read_csv(tmp_path / "o.csv")
    assert frame.group_by("user_id").len().sort("user_id").rows() == [("cold", 5), ("new", 5)]
    assert not set(frame.filter(pl.col("user_id") == "new")["item_id"]) & set(known)


def test_more_than_there_are_items(
    trained: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = call(capsys, "recommend", trained, "--k", 10_000, "--out", tmp_path / "all.parquet")
    assert code == 0
    frame = pl.read_parquet(tmp_path / "all.parquet")
    assert frame.group_by("user_id").len()["len"].max() < 300
    assert frame["score"].is_finite().all()


def test_stats_and_info(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "stats", log)
    assert code == 0 and "interactions" in out and "valid" in out
    code, out, _ = call(capsys, "info")
    assert code == 0 and "isa" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert table["nt_xent_loss"] == list(automatic_backends("nt_xent_loss"))
    assert table["orthogonality_loss"] == ["reference", "reference"]
    assert "in Triton's interpreter, and on no GPU yet" in out


@needs_real_logs
def test_training_on_real_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "train", PARQUET, "--out", tmp_path / "run", *SMALL, "--set", "contrastive_weight=0")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["recall@50"] > 0


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PLAYS_CSV = "user_id,item_id,day\n" + "".join(f"{u},{u + i},{i}\n" for u in range(6) for i in range(4))
BAD_LOGS = {
    "missing.parquet": (None, []),
    "empty.csv": ("", []),
    "header.csv": ("user_id,item_id,day\n", []),
    "binary.parquet": (os.urandom(200), []),
    "truncated.csv.gz": (gzip.compress(PLAYS_CSV.encode())[:40], []),
    "column.csv": ("user_id,day\n1,2\n", []),
    "times.csv": ("user_id,item_id,timestamp\n1,2,yesterday\n", []),
    "null.csv": (PLAYS_CSV + ",3,1\n", []),
    "two_days.csv": ("user_id,item_id,day\n1,2,0\n1,3,1\n", []),
    "filter.csv": (PLAYS_CSV, ["--where", "day > 99"]),
    "bad_filter.csv": (PLAYS_CSV, ["--where", "day >"]),
    "gap.csv": ("user_id,item_id,day\n1,2,0\n1,3,1\n1,4,5\n", []),
    "one_play_each.csv": ("user_id,item_id,day\n1,2,0\n2,3,1\n3,4,2\n", []),
    "unknown_key.csv": (PLAYS_CSV, ["--set", "depth=3"]),
    "bad_value.csv": (PLAYS_CSV, ["--set", "dim=0"]),
    "bad_model.csv": (PLAYS_CSV, ["--model", "sasrec"]),
    "bad_optimizer.csv": (PLAYS_CSV, ["--optimizer", "sgd"]),
    "bad_precision.csv": (PLAYS_CSV, ["--precision", "fp8"]),
    "bad_device.csv": (PLAYS_CSV, ["--device", "gpu"]),
    "config.csv": (PLAYS_CSV, ["--config", "nowhere.toml"]),
    "categories.csv": (PLAYS_CSV, ["--item-categories", "nowhere.csv"]),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_bad_input(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, options = BAD_LOGS[name]
    data = tmp_path / name
    if content is not None:
        write(data, content)
    code, out, err = call(capsys, "train", data, "--out", tmp_path / "run", *options)
    assert code == 2
    assert err.startswith("cmi-fast: ") and err.count("\n") == 1, err
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "nowhere: expected the folder of a trained model"),
        (["recommend", "nowhere", "--out", "x.parquet"], "nowhere: expected the folder of a trained model"),
        (["recommend", "nowhere", "--out", "x.xlsx"], "--out x.xlsx: expected a name ending in .parquet or .csv"),
        (["recommend", "nowhere", "--k", "0", "--out", "x.csv"], "--k: expected 1 or more, found 0"),
        (["simulate", "nowhere/x.parquet"], "nowhere"),
        (["simulate", "x.parquet", "--days", "2"], "days"),
        (["simulate", "x.csv"], "x.csv"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten_unasked(trained: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "metrics.json").read_bytes()
    code, _, err = call(capsys, "train", log, "--out", trained, *SMALL)
    assert code == 2 and "not empty" in err and "--overwrite" in err
    assert (trained / "metrics.json").read_bytes() == before


def test_nothing_is_overwritten_by_mistake(
    trained: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = log.read_bytes(), (trained / "items.parquet").read_bytes()
    for arguments in (
        ["recommend", trained, "--out", log],
        ["recommend", trained, "--out", trained / "items.parquet"],
        ["train", trained / "items.parquet", "--out", trained, "--overwrite"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and "--out" in err and err.count("\n") == 1
    assert (log.read_bytes(), (trained / "items.parquet").read_bytes()) == before


def test_a_log_that_the_model_does_not_fit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, items, message in (
        ("text", ["a", "b", "c"], "item ids of the log are text, those that the model knows are integers"),
        ("unknown", [10**6, 10**6 + 1, 10**6 + 2], "found no item that the model"),
    ):
        path = tmp_path / f"{name}.csv"
        pl.DataFrame({"user_id": [1, 1, 1], "item_id": items, "day": [0, 1, 2]}).write_csv(path)
        code, _, err = call(capsys, "recommend", trained, "--out", tmp_path / "o.csv", "--data", path)
        assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "truncated", "other", "nan"])
def test_damaged_weights(trained: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "nan":
        state = safetensors.torch.load_file(weights)
        state["items"][3, 2] = torch.nan
        safetensors.torch.save_file(state, weights)
    else:
        write(copy / "config.toml", (copy / "config.toml").read_text().replace("dim = 16", "dim = 8"))
    code, _, err = call(capsys, "evaluate", copy)
    message = "no finite numbers" if damage == "nan" else "no complete trained model"
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("damage", ["garbage", "columns", "repeated"])
def test_damaged_items(trained: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    items = pl.read_parquet(copy / "items.parquet")
    if damage == "garbage":
        write(copy / "items.parquet", b"PAR1 and no more")
    elif damage == "columns":
        items.drop("popularity_rank").write_parquet(copy / "items.parquet")
    else:
        items.with_columns(item_id=pl.lit(3, pl.Int64)).write_parquet(copy / "items.parquet")
    code, _, err = call(capsys, "recommend", copy, "--out", tmp_path / "o.csv")
    assert code == 2 and "items.parquet" in err and err.count("\n") == 1, err
