"""Settings: precedence, and every mistake named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmi_fast.errors import InputError
from cmi_fast.training.config import Config, load_config


def test_defaults_are_the_papers() -> None:
    config = load_config()
    assert (config.interests, config.dim, config.temperature, config.contrastive_temperature) == (8, 64, 0.1, 0.1)
    assert (config.contrastive_weight, config.orthogonality_weight, config.view_share) == (0.01, 10.0, 0.5)
    assert config.max_history == 100


def test_set_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("batch_size = 32\nlr = 0.01\n")
    config = load_config(path, ["lr=0.5", "general_interest=false", "model=cmi"])
    assert (config.batch_size, config.lr, config.general_interest, config.dim) == (32, 0.5, False, 64)


def test_presets_lie_below_files_and_settings(tmp_path: Path) -> None:
    paper = load_config(preset="paper")
    assert not paper.unit_interests and not paper.general_in_retrieval and not paper.logq_correction
    assert (paper.model, paper.batch_size, paper.lr, paper.recent_weight) == ("cmi", 1024, 1e-3, 0)
    authors = load_config(preset="authors")
    assert (authors.model, authors.disjoint_views, authors.weight_decay) == ("cmi-authors", True, 1e-4)
    assert (authors.steps_per_epoch, authors.patience) == (1000, 10)
    path = tmp_path / "c.toml"
    path.write_text("batch_size = 32\nlr = 0.01\n")
    config = load_config(path, ["lr=0.5"], preset="paper")
    assert (config.batch_size, config.lr, config.unit_interests) == (32, 0.5, False)
    with pytest.raises(InputError, match=r"^--preset papers: expected paper or authors$"):
        load_config(preset="papers")


def test_round_trip(tmp_path: Path) -> None:
    config = load_config(settings=["steps_per_epoch=7", "seed=3"])
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "c.toml") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["epoch=3"], "--set: unknown key 'epoch'; known keys: model, data, interests"),
        (["epochs"], "--set epochs: expected key=value"),
        (["epochs=0"], "--set: epochs = 0: input should be greater than or equal to 1"),
        (["epochs=many"], "--set: epochs = 'many': input should be a valid integer"),
        (["lr=-1"], "--set: lr = -1: input should be greater than 0"),
        (["temperature=0"], "--set: temperature = 0: input should be greater than or equal to"),
        (["lr=nan"], "--set: lr = nan"),
        (["lr=inf"], "--set: lr = inf"),
        (["seed=18446744073709551616"], "--set: seed = 18446744073709551616"),
        (["batch_size=100000"], "--set: batch_size = 100000"),
        (["epochs=true"], "--set: epochs = True"),
        (["data.path=x"], "--set: unknown key"),
        (["data={path='x'}"], "--set data: the log is an argument of its own"),
        (["model=sine"], "--set: model = 'sine': input should be 'cmi'"),
        (["interests=65"], "--set: interests = 65"),
    ],
)
def test_bad_settings(settings: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(settings=settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_bad_option_is_named_as_it_was_given() -> None:
    with pytest.raises(InputError, match=r"^--model sine: input should be 'cmi', "):
        load_config(settings=["model=mind"], model="sine", precision=None)
    assert load_config(settings=["model=mind", "lr=0.5"], model="cmi", precision=None).model == "cmi"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"lr = ", "no valid TOML"),
        (b"\xff\xfe\x00", "expected a TOML text file, found binary data"),
        (b"depth = 3", "unknown key 'depth'"),
        (b"dim = 0", "dim = 0: input should be greater than or equal to 1"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.toml: ") as error:
        load_config(path)
    assert message in str(error.value)


def test_config_is_frozen_and_documented() -> None:
    assert all(field.description for name, field in Config.model_fields.items() if name not in ("model", "data"))
