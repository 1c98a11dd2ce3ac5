"""Training: early stopping, the best weights, what it may see, and what it does when it goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cmi_fast import _native
from cmi_fast.data import Histories, Interactions
from cmi_fast.data.distinct import distinct_items
from cmi_fast.data.sampler import BatchSampler
from cmi_fast.data.simulate import simulate
from cmi_fast.errors import InputError
from cmi_fast.models import CMI
from cmi_fast.ranking import Ranker
from cmi_fast.run import train_run
from cmi_fast.training.checkpoint import Tensors
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import (
    InMemory,
    Keeper,
    Progress,
    best_epoch,
    build_model,
    build_optimizer,
    candidate_frequency,
    loss_of_rows,
    parse_device,
    to_tensors,
    train,
)

SMALL = ["dim=8", "interests=2", "batch_size=32", "steps_per_epoch=3"]
PLAYS = Histories.group(np.repeat(np.arange(20), 6), np.random.default_rng(0).integers(0, 40, 120), 20)


def run_with(scores: list[float], config: Config) -> tuple[int, int, list[int], dict[str, torch.Tensor]]:
    """Train with scripted valid metrics: best epoch, epochs run, when it saved, and the weights it ends with."""
    model = build_model(config, 40, candidate_frequency(PLAYS, 40))
    states: list[dict[str, torch.Tensor]] = []
    saved: list[int] = []

    def evaluate() -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"recall@50": scores[len(states) - 1]}

    class InMemory(Keeper):
        def keep_best(self) -> None:
            saved.append(len(states))

        def restore_best(self) -> None:
            model.load_state_dict(states[saved[-1] - 1])

    epochs = train(model, PLAYS, config, evaluate, InMemory(), Progress())
    best = best_epoch(epochs)
    final = model.state_dict()
    assert all(torch.equal(final[name], value) for name, value in states[best.number - 1].items())
    return best.number, len(epochs), saved, final


def test_stops_after_patience_with_the_best_weights() -> None:
    config = load_config(settings=[*SMALL, "patience=2", "epochs=10"])
    assert run_with([0.1, 0.3, 0.2, 0.3, 0.9], config)[:3] == (2, 4, [1, 2])


def test_runs_all_epochs_while_it_improves() -> None:
    config = load_config(settings=[*SMALL, "patience=1", "epochs=3"])
    assert run_with([0.1, 0.2, 0.3], config)[:3] == (3, 3, [1, 2, 3])


@pytest.mark.parametrize(("count", "best"), [(2, 3), (3, 2), (10, 3)])
def test_the_mean_of_the_last_epochs_is_judged_and_kept(count: int, best: int) -> None:
    """What is judged are means of the epochs' own weights, which training itself goes on from as without averaging."""

    def train_with(settings: list[str], scores: list[float]) -> tuple[list[Tensors], Tensors]:
        config = load_config(settings=[*SMALL, "epochs=4", *settings])
        model = build_model(config, 40, candidate_frequency(PLAYS, 40))
        judged: list[Tensors] = []

        def evaluate() -> dict[str, float]:
            judged.append({name: value.clone() for name, value in model.state_dict().items()})
            return {"recall@50": scores[len(judged) - 1]}

        train(model, PLAYS, config, evaluate, InMemory(model), Progress())
        return judged, model.state_dict()

    scores = [0.1 * (number == best) for number in range(1, 5)]
    own, _ = train_with([], scores)
    judged, final = train_with([f"average_epochs={count}"], scores)
    for number in range(4):
        window = own[max(0, number + 1 - count) : number + 1]
        for name, value in judged[number].items():
            torch.testing.assert_close(value, torch.stack([weights[name] for weights in window]).mean(0))
    assert all(torch.equal(final[name], value) for name, value in judged[best - 1].items())


def test_candidate_frequency() -> None:
    plays = Histories.group(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
    torch.testing.assert_close(candidate_frequency(plays, 4), torch.tensor([0.5, 1.0, 0.25, 0.25]))


def test_valid_and_test_days_do_not_leak_into_training(tmp_path: Path) -> None:
    """Other plays on the last two days change nothing of what is trained; one epoch, as they choose the best one."""
    log, _ = simulate(users=80, items=60, days=6, plays_per_user=20)
    items = pl.Series(np.random.default_rng(1).permutation(log["item_id"].to_numpy()))
    shuffled = log.with_columns(item_id=pl.when(pl.col("day") >= 4).then(items).otherwise(pl.col("item_id")))
    weights = []
    for name, frame in (("a", log), ("b", shuffled)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
        config = load_config(settings=[*SMALL, "epochs=1"])
        metrics = train_run(tmp_path / f"{name}.parquet", tmp_path / name, config)
        weights.append(((tmp_path / name / "model.safetensors").read_bytes(), metrics["test"]))
    assert weights[0][0] == weights[1][0]
    assert weights[0][1] != weights[1][1]


def test_divergence_is_said_in_one_line() -> None:
    config = load_config(settings=[*SMALL, "orthogonality_weight=1e300", "lr=1e30"])
    with pytest.raises(InputError, match=r"epoch 1, step 1: the loss became inf; lower lr"):
        run_with([0.1] * 30, config)


def test_everything_is_on_the_models_device() -> None:
    """The meta device takes no tensor of the CPU, as a GPU takes none."""
    config = load_config(settings=SMALL)
    model = build_model(config, 40, candidate_frequency(PLAYS, 40)).to("meta")
    sampler = BatchSampler(PLAYS, np.ones(40, dtype=bool), batch_size=32)
    losses = loss_of_rows(model, *(x.to("meta") for x in to_tensors(*distinct_items(sampler.batch(0, 0), 40))))
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters())
    ranker = Ranker(model, config, np.arange(40), np.arange(40), np.zeros(40, np.int64))
    assert ranker.interests(PLAYS).is_meta


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "CUDA is not available here"), ("gpu", "expected cpu, cuda or cuda:N"), ("meta", "expected cpu, cuda")],
)
def test_a_device_that_is_not_there(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device {device}: {message}"):
        parse_device(device)


@pytest.mark.parametrize("setting", ["optimizer=lazy-adam", "precision=bf16"])
def test_other_optimiser_and_precision_learn_as_well(setting: str, tmp_path: Path) -> None:
    """Three seeds: the mean Recall@50 differs from the default's by less than seeds do."""
    log, _ = simulate(users=200, items=150, days=6, plays_per_user=30)
    log.write_parquet(tmp_path / "log.parquet")
    common = ["dim=16", "interests=4", "batch_size=64", "steps_per_epoch=60", "epochs=2", "lr=0.01"]
    found: dict[str, list[float]] = {}
    for name, settings in (("default", []), ("other", [setting])):
        for seed in range(3):
            config = load_config(settings=[*common, *settings, f"seed={seed}"])
            run = tmp_path / f"{name}{seed}"
            found.setdefault(name, []).append(train_run(tmp_path / "log.parquet", run, config)["test"]["recall@50"])
            assert load_config(run / "config.toml").model_dump()[setting.split("=")[0]] == (
                setting.split("=")[1] if settings else Config().model_dump()[setting.split("=")[0]]
            )
    default, other = np.array(found["default"]), np.array(found["other"])
    assert abs(other.mean() - default.mean()) <= max(np.ptp(default), np.ptp(other))
    assert not np.array_equal(default, other)


def test_weight_decay_reaches_adam_and_lazy_adam_says_that_it_has_none() -> None:
    model = build_model(Config(dim=8), 20)
    assert build_optimizer(model, Config(weight_decay=0.5)).param_groups[0]["weight_decay"] == 0.5
    with pytest.raises(InputError, match=r"^weight_decay: found 0\.5 with lazy-adam, which has none$"):
        build_optimizer(model, Config(weight_decay=0.5, optimizer="lazy-adam"))


@pytest.mark.skipif(not _native.available, reason="needs the compiled operators")
def test_fused_losses_follow_those_of_the_reference() -> None:
    """The first 50 losses within 1e-4: 50 steps of Adam do not let rounding grow."""
    config = load_config(settings=["dim=16", "interests=4", "batch_size=64", "max_history=20"])
    log, _ = simulate(users=200, items=300, days=6, plays_per_user=20)
    plays = Interactions.from_frame(log).histories()
    found: dict[str, list[float]] = {}
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        model = CMI(300, interests=4, dim=16, frequency=candidate_frequency(plays, 300), backend=backend)
        optimizer = build_optimizer(model, config)
        sampler = BatchSampler(plays, np.ones(300, dtype=bool), batch_size=64, max_history=20)
        found[backend] = []
        for number in range(50):
            batch = sampler.batch(*divmod(number, len(sampler)))
            losses = loss_of_rows(model, *to_tensors(*distinct_items(batch, 300)))
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            optimizer.step()
            found[backend].append(losses.total.item())
    fused, reference = found.values()
    assert fused[-1] < fused[0] - 0.1  # it did learn
    assert fused == pytest.approx(reference, abs=1e-4, rel=0)
