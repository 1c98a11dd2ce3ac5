"""Training with early stopping on the valid day."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.profiler import record_function

from cmi_fast.data import Histories
from cmi_fast.data.distinct import distinct_items
from cmi_fast.data.prefetch import prefetch
from cmi_fast.data.sampler import Batch, BatchSampler
from cmi_fast.errors import InputError
from cmi_fast.models import MultiInterestModel
from cmi_fast.training import checkpoint as checkpoints
from cmi_fast.training.averaging import RecentWeights
from cmi_fast.training.checkpoint import Clock, Done, Epoch, Tensors, restore_tensors, training_tensors
from cmi_fast.training.config import Config
from cmi_fast.training.lazy_adam import LazyAdam
from cmi_fast.training.models import make_model
from cmi_fast.training.profile import WAITING

SELECTED_BY = "recall@50"


class Progress:
    """What training reports as it goes: nothing here, lines and a bar on the command line."""

    def resume(self, epoch: int, step: int) -> None:
        """Training goes on after this step of this epoch."""

    def phase(self, name: str) -> None:
        """What is done from now on: "reading", "training", "evaluating", "ranking", ..."""

    def users(self, done: int, of: int) -> None:
        """So many users have been ranked."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """A step of an epoch is done; ``loss`` is the objective's mean over the epoch so far."""

    def losses(self, steps: int, losses: dict[str, float]) -> None:
        """``steps`` steps are done in all; the parts of the objective in the last one."""

    def epoch(self, epoch: Epoch, best: bool) -> None:
        """An epoch is done."""


class Keeper(Protocol):
    """Where training keeps what must not be lost."""

    def checkpoint(self, done: Done, tensors: Tensors) -> None:
        """Keep what training can go on from; at the start, after epochs, and now and then between."""

    def keep_best(self) -> None:
        """Keep the model's weights: they are the best so far."""

    def restore_best(self) -> None:
        """Give the model the weights that were kept last."""


class InMemory(Keeper):
    """Keeps the best weights of ``model`` beside it, and no checkpoints."""

    def __init__(self, model: MultiInterestModel) -> None:
        self._model = model
        self._weights: Tensors = {}

    def checkpoint(self, done: Done, tensors: Tensors) -> None:
        pass

    def keep_best(self) -> None:
        self._weights = {name: value.clone() for name, value in self._model.state_dict().items()}

    def restore_best(self) -> None:
        self._model.load_state_dict(self._weights)


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


def build_optimizer(model: MultiInterestModel, config: Config) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    if config.weight_decay:
        raise InputError(f"weight_decay: found {config.weight_decay} with lazy-adam, which has none")
    return LazyAdam(model.parameters(), lr=config.lr, fused=True)


def train(
    model: MultiInterestModel,
    plays: Histories,
    config: Config,
    evaluate: Callable[[], dict[str, float]],
    keeper: Keeper,
    progress: Progress,
    checkpoint: tuple[Done, Tensors] | None = None,
) -> list[Epoch]:
    """Train ``model`` in place and leave it with the weights of its best epoch; returns all epochs.

    Args:
        plays: the training plays of each user, as rows of the model's item table.
        evaluate: metrics of the valid day for the model as it is; the best ``recall@50`` wins. Without metrics (an
            empty dict) there is nothing to choose by: every epoch is run, and the last is the best.
        keeper: keeps weights and checkpoints.
        checkpoint: what ``keeper`` kept last; training goes on there, and ends with the same weights.

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
    optimizer = build_optimizer(model, config)
    recent = RecentWeights(model, config.average_epochs)
    clock = Clock()

    def write_checkpoint() -> None:
        keeper.checkpoint(done, training_tensors(model, optimizer) | recent.tensors())

    if checkpoint is None:
        done = Done()
        clock.write(write_checkpoint)
    else:
        done, tensors = checkpoint
        restore_tensors(model, optimizer, tensors)
        recent.restore(tensors)
        progress.resume(len(done.epochs) + 1, done.steps - len(done.epochs) * steps)

    def write_checkpoint_if_due(after: float) -> None:
        if clock.due(after):
            _require_finite(model, len(done.epochs) + 1, done.steps - len(done.epochs) * steps)
            clock.write(write_checkpoint)

    with closing(prefetched_batches(sampler, model.items.device, done.steps)) as batches:
        while not _finished(done.epochs, config):
            number = len(done.epochs) + 1
            model.train()
            for step in range(done.steps - (number - 1) * steps + 1, steps + 1):
                started = time.perf_counter()
                # What a model draws depends on the seed and the step alone, so that there is no state to resume.
                torch.manual_seed(((config.seed << 32) + done.steps) % 2**63)
                model.begin_step(done.steps)
                with record_function(WAITING):
                    batch = next(batches)
                losses = _step(model, optimizer, batch, config.precision)
                if not math.isfinite(losses["total"]):
                    raise _diverged(number, step, f"the loss became {losses['total']}")
                done.add(losses, time.perf_counter() - started)
                progress.losses(done.steps, losses)
                progress.step(number, step, steps, done.losses["total"] / step)
                if step < steps:
                    write_checkpoint_if_due(checkpoints.SECONDS_BETWEEN)
            _require_finite(model, number, steps)
            model.eval()
            means = {name: value / steps for name, value in done.losses.items()}
            with recent.averaged():
                epoch = Epoch(number, means, evaluate(), done.seconds)
                done.end_epoch(epoch)
                better = best_epoch(done.epochs) is epoch
                if better:
                    keeper.keep_best()
            write_checkpoint_if_due(0.0)
            progress.epoch(epoch, better)
    keeper.restore_best()
    return done.epochs


def best_epoch(epochs: list[Epoch]) -> Epoch:
    """The first of those with the best valid metric; without metrics the last."""
    return max(epochs, key=lambda epoch: epoch.valid[SELECTED_BY]) if epochs[-1].valid else epochs[-1]


def _finished(epochs: list[Epoch], config: Config) -> bool:
    if not epochs:
        return False
    return len(epochs) >= config.epochs or len(epochs) - best_epoch(epochs).number >= config.patience


def _require_finite(model: MultiInterestModel, epoch: int, step: int) -> None:
    """What is kept can be used: a loss that is finite may still have led to weights that are not."""
    for name, parameter in model.named_parameters():
        if not all(extreme.isfinite() for extreme in parameter.detach().aminmax()):
            raise _diverged(epoch, step, f"found values in {name} that are no finite numbers")


def _diverged(epoch: int, step: int, what: str) -> InputError:
    return InputError(f"epoch {epoch}, step {step}: {what}; lower lr or the losses' weights")


def prefetched_batches(
    sampler: BatchSampler, device: torch.device, first: int = 0
) -> Generator[list[torch.Tensor], None, None]:
    """Epoch after epoch the arguments of :func:`loss_of_rows`, from batch ``first`` on, sampled in the background.

    For a GPU they lie in pinned memory, from where they are copied while the host goes on.
    """

    def draw(number: int) -> list[torch.Tensor]:
        batch = sampler.batch(*divmod(number, len(sampler)))
        tensors = to_tensors(*distinct_items(batch, sampler.num_items))
        return [x.pin_memory() for x in tensors] if device.type == "cuda" else tensors

    return prefetch(draw, count(first))


def to_tensors(rows: NDArray[np.int64], batch: Batch) -> list[torch.Tensor]:
    """The arguments of :func:`loss_of_rows`."""
    arrays = rows, batch.history, batch.lengths, batch.views, batch.positives, batch.negatives
    return [torch.from_numpy(x) for x in arrays]


class _Objective(nn.Module):
    """``model.loss`` as the forward of a module, as ``functional_call`` wants it."""

    def __init__(self, model: MultiInterestModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: torch.Tensor) -> Any:
        return self.model.loss(*batch)


def loss_of_rows(model: MultiInterestModel, rows: torch.Tensor, *batch: torch.Tensor, sparse_grad: bool = False) -> Any:
    """``model.loss(*batch)`` where the batch's items are places in ``rows`` [R], distinct rows of the item table.

    In place of the table the model sees these rows alone. So the table gets one gradient, whatever the number of its
    uses; with ``sparse_grad`` a sparse tensor that holds no other row.
    """
    tensors = {"model.items": F.embedding(rows, model.items, sparse=sparse_grad)}
    if model.candidate_bias is not None:
        tensors["model.candidate_bias"] = model.candidate_bias[rows]
    return functional_call(_Objective(model), tensors, tuple(batch))


def _step(
    model: MultiInterestModel, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor], precision: str
) -> dict[str, float]:
    device = model.items.device
    model.project()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        arguments = [x.to(device, non_blocking=True) for x in batch]
        losses = loss_of_rows(model, *arguments, sparse_grad=isinstance(optimizer, LazyAdam))
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()
    values = torch.stack(losses).tolist()
    return dict(zip(losses._fields, values, strict=True))
