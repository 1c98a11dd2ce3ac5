"""Every model by the same commands: train, evaluate, recommend."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from cmi_fast.cli import app
from cmi_fast.data.simulate import simulate
from cmi_fast.evaluation import CUTOFFS
from cmi_fast.recommender import Recommender
from cmi_fast.trained_run import evaluate_run, recommend_run
from cmi_fast.training.config import load_config
from cmi_fast.training.models import MODELS

SETTINGS = ["dim=8", "interests=3", "max_history=20", "batch_size=32", "steps_per_epoch=30", "epochs=2", "lr=0.01"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    simulate(users=80, items=60, days=6, plays_per_user=20)[0].write_parquet(path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_trains_evaluates_and_recommends(name: str, log: Path, tmp_path: Path) -> None:
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", str(log), "--out", str(tmp_path / "run"), "--model", name, *settings])
    assert result.exit_code == 0, result.output
    metrics = pl.read_json(tmp_path / "run" / "metrics.json").to_dicts()[0]
    assert metrics["model"] == name
    first, last = (epoch["losses"]["total"] for epoch in (metrics["epochs"][0], metrics["epochs"][-1]))
    assert last < first
    again = evaluate_run(tmp_path / "run")
    assert again["test"] == metrics["test"]  # no chance in evaluation, and all weights were saved
    frame, unknown = recommend_run(tmp_path / "run", tmp_path / "lists.parquet", k=max(CUTOFFS))
    assert unknown == 0 and frame["score"].is_finite().all() and frame.group_by("user_id").len().height == 80
    recommender = Recommender.load(tmp_path / "run")
    assert recommender.interests().isfinite().all()
    assert recommender.recommend(k=max(CUTOFFS)).equals(frame)


@pytest.mark.parametrize(("preset", "model"), [("paper", "cmi"), ("authors", "cmi-authors")])
def test_presets_train(preset: str, model: str, log: Path, tmp_path: Path) -> None:
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    command = ["train", str(log), "--out", str(tmp_path / "run"), "--preset", preset, *settings]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    config = load_config(tmp_path / "run" / "config.toml")
    assert config.model == model and config.dim == 8
    assert config.unit_interests == (preset == "authors") and config.disjoint_views == (preset == "authors")
    assert evaluate_run(tmp_path / "run")["test"] == pl.read_json(tmp_path / "run" / "metrics.json")["test"][0]
