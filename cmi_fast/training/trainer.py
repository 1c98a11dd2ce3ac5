"""Training with early stopping on the valid day."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cmi_fast.data import Histories
from cmi_fast.data.sampler import Batch, BatchSampler
from cmi_fast.errors import InputError
from cmi_fast.models import MultiInterestModel
from cmi_fast.training.config import Config
from cmi_fast.training.models import make_model

SELECTED_BY = "recall@50"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean losses over its steps, valid metrics, seconds of training."""

    number: int
    losses: dict[str, float]
    valid: dict[str, float]
    seconds: float


class Progress:
    """What training reports as it goes: nothing here, lines and a bar on the command line."""

    def phase(self, name: str) -> None:
        """What is done from now on: "reading", "training", "evaluating"."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step of an epoch is done; ``loss`` is the objective's mean over the epoch so far."""

    def epoch(self, epoch: Epoch, best: bool) -> None:
        """An epoch is done."""


def parse_device(name: str) -> torch.device:
    """The device to train on. Raises InputError where there is none of that name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: CUDA is not available here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: found {torch.cuda.device_count()} CUDA devices")
    return device


def candidate_frequency(plays: Histories, num_items: int) -> torch.Tensor:
    """How often each item is a candidate of Eq. 7, [V], up to a factor: as a positive by its share of the training
    ``plays``, as a negative by an equal share of the catalogue."""
    counts = np.bincount(plays.items, minlength=num_items)
    return torch.from_numpy(counts / counts.sum() + 1 / num_items).float()


def build_model(config: Config, num_items: int, frequency: torch.Tensor | None = None) -> MultiInterestModel:
    """A fresh model, the same for the same seed; ``frequency`` as from :func:`candidate_frequency`, for training."""
    torch.manual_seed(config.seed)
    return make_model(config, num_items, frequency)


def train(
    model: MultiInterestModel,
    plays: Histories,
    config: Config,
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[], None],
    progress: Progress,
) -> tuple[Epoch, list[Epoch]]:
    """Train ``model`` in place and leave it with the weights of its best epoch, returned with all epochs.

    Args:
        plays: the training plays of each user, as rows of the model's item table.
        evaluate: metrics of the valid day for the model as it is; the best ``recall@50`` wins.
        save: called whenever an epoch is the best so far.

    Raises:
        InputError: no sample can be drawn from ``plays``, or the loss is no finite number any more.
    """
    sampler = BatchSampler(
        plays,
        np.ones(len(model.items), dtype=bool),
        batch_size=config.batch_size,
        max_history=config.max_history,
        view_share=config.view_share,
        samples_per_user=config.samples_per_user,
        disjoint_views=config.disjoint_views,
        seed=config.seed,
    )
    steps = config.steps_per_epoch or len(sampler)
    batches = _endless(sampler)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    best: Epoch | None = None
    epochs: list[Epoch] = []
    weights: dict[str, torch.Tensor] = {}
    for number in range(1, config.epochs + 1):
        started = time.perf_counter()
        model.train()
        sums: dict[str, float] = {}
        for step in range(1, steps + 1):
            for name, loss in _step(model, optimizer, next(batches)).items():
                sums[name] = sums.get(name, 0.0) + loss
            progress.step(number, step, steps, sums["total"] / step)
        seconds = time.perf_counter() - started
        if not math.isfinite(sum(sums.values())):
            raise InputError(
                f"epoch {number}: the loss became {sums['total'] / steps}; lower lr or the losses' weights"
            )
        model.eval()
        epoch = Epoch(number, {name: value / steps for name, value in sums.items()}, evaluate(), seconds)
        epochs.append(epoch)
        better = best is None or epoch.valid[SELECTED_BY] > best.valid[SELECTED_BY]
        if better:
            best = epoch
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            save()
        progress.epoch(epoch, better)
        if best is not None and number - best.number >= config.patience:
            break
    model.load_state_dict(weights)
    assert best is not None  # config.epochs >= 1
    return best, epochs


def _endless(sampler: BatchSampler) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from sampler.epoch(epoch)
        epoch += 1


def to_tensors(batch: Batch, device: torch.device) -> list[torch.Tensor]:
    """The arguments of a model's ``loss``."""
    arrays = batch.history, batch.lengths, batch.views, batch.positives, batch.negatives
    return [torch.from_numpy(x).to(device) for x in arrays]


def _step(model: MultiInterestModel, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    losses = model.loss(*to_tensors(batch, model.items.device))
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()
    values = torch.stack(losses).tolist()
    return dict(zip(losses._fields, values, strict=True))
