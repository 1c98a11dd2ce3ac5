"""Checkpoints: all that a training needs to go on as if it had never stopped, in one file that appears whole."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic
import safetensors
import safetensors.torch
import torch

from cmi_fast.data import Histories
from cmi_fast.data.files import atomic_path
from cmi_fast.data.plays import one_line
from cmi_fast.errors import InputError
from cmi_fast.training.config import Config

SECONDS_BETWEEN = 60.0  # within an epoch
TIMES_ITS_COST = 20.0  # so that large states are not written all the time


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean losses over its steps, valid metrics, seconds of training."""

    number: int
    losses: dict[str, float]
    valid: dict[str, float]
    seconds: float


@dataclass
class Done:
    """How far training is: the steps done in all, the epochs completed, sums over the steps of the one under way.

    As every batch is drawn from its number alone, the steps are all there is to know of the sampler.
    """

    steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)

    def add(self, losses: dict[str, float], seconds: float) -> None:
        self.steps += 1
        self.losses = {name: self.losses.get(name, 0.0) + value for name, value in losses.items()}
        self.seconds += seconds

    def end_epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        self.losses, self.seconds = {}, 0.0


Tensors = dict[str, torch.Tensor]


class Evaluation(pydantic.BaseModel):
    """What is evaluated when training is done, beside the valid part."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    test: bool = True
    baselines: bool = True
    users: bool = False  # each user's metrics, in user_metrics.parquet


class State(pydantic.BaseModel):
    """What a checkpoint holds beside tensors: what was trained on what, and how far it is."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    config: Config
    device: str
    item_categories: str | None
    evaluation: Evaluation = Evaluation()
    tensorboard: bool = False
    plays: str  # fingerprint
    done: Done


def write_checkpoint(path: Path, state: State, tensors: Tensors) -> None:
    """Replace ``path`` by a checkpoint, at once; until then the one before it stays."""
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, {"state": state.model_dump_json()})
        except safetensors.SafetensorError as error:  # a full disk, say
            raise InputError(f"{path}: cannot be written: {one_line(error)}") from None


def read_checkpoint(path: Path) -> tuple[State, Tensors]:
    """What :func:`write_checkpoint` wrote. Raises InputError where the file is anything else."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = State.model_validate_json((file.metadata() or {}).get("state", ""))
        return state, safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: no complete checkpoint: {one_line(error)}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "state"
        raise InputError(f"{path}: no checkpoint of this version: {where}: {first['msg']}") from None


def fingerprint(plays: Histories) -> str:
    """Tells training plays from others."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (plays.offsets, plays.items):
        digest.update(array.data)
    return digest.hexdigest()


def training_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The weights of ``model`` and the state of ``optimizer`` by name, not copied."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return tensors


def restore_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give ``model`` and ``optimizer`` what :func:`training_tensors` found. Raises InputError where it does not fit."""
    weights: Tensors = {}
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = value
        elif kind == "optimizer":
            number, _, rest = rest.partition(".")
            state.setdefault(int(number), {})[rest] = value
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit the model: {one_line(error)}") from None
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Clock:
    """When to write the next checkpoint: not sooner than a multiple of what the last one cost."""

    def __init__(self) -> None:
        self._last, self._cost = time.perf_counter(), 0.0

    def write(self, write: Callable[[], None]) -> None:
        started = time.perf_counter()
        write()
        self._last = time.perf_counter()
        self._cost = self._last - started

    def due(self, after: float) -> bool:
        """Whether ``after`` seconds, and that multiple, have passed."""
        return time.perf_counter() - self._last >= max(after, TIMES_ITS_COST * self._cost)
