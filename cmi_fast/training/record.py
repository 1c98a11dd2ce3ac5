"""What a training leaves in writing as it goes: a log for people, and events for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from cmi_fast.errors import InputError
from cmi_fast.training.checkpoint import Done, Epoch
from cmi_fast.training.trainer import Progress


class Several(Progress):
    """Reports to each of several."""

    def __init__(self, *parts: Progress) -> None:
        self._parts = parts

    def resume(self, epoch: int, step: int) -> None:
        for part in self._parts:
            part.resume(epoch, step)

    def phase(self, name: str) -> None:
        for part in self._parts:
            part.phase(name)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        for part in self._parts:
            part.step(epoch, step, steps, loss)

    def losses(self, steps: int, losses: dict[str, float]) -> None:
        for part in self._parts:
            part.losses(steps, losses)

    def epoch(self, epoch: Epoch, best: bool) -> None:
        for part in self._parts:
            part.epoch(epoch, best)

    def users(self, done: int, of: int) -> None:
        for part in self._parts:
            part.users(done, of)


class RunLog(Progress):
    """``log.txt``: what was decided, and when, a line each. They wait for :meth:`begin`: the folder may not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] | None = []

    def begin(self) -> None:
        """Write from now on, behind what is there."""
        waiting, self._waiting = self._waiting or [], None
        self._write(waiting)

    def say(self, *lines: str) -> None:
        stamped = [f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}" for line in lines]
        if self._waiting is None:
            self._write(stamped)
        else:
            self._waiting += stamped

    def resume(self, epoch: int, step: int) -> None:
        self.say(f"continuing in epoch {epoch} after step {step}")

    def phase(self, name: str) -> None:
        self.say(f"stage: {name}")

    def epoch(self, epoch: Epoch, best: bool) -> None:
        told = [f"{name} {value:.4f}" for name, value in epoch.losses.items()]
        told += [f"valid {name} {value:.4f}" for name, value in epoch.valid.items() if name.startswith("recall")]
        self.say(f"epoch {epoch.number}: {', '.join(told)}; {epoch.seconds:.1f} s{'; best so far' if best else ''}")

    def _write(self, lines: Iterable[str]) -> None:
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)


class Events(Protocol):
    """What is used of ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...
    def flush(self) -> None: ...


class TensorBoard(Progress):
    """Every step's losses, and every epoch's metrics at its last step, as events in ``folder``.

    What a checkpoint holds is in the events before it is written (:meth:`keep`). A training that goes on from there
    may repeat later steps: their events from before are marked as superseded, and TensorBoard leaves them out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._events: Events | None = None
        self._steps_per_epoch = self._epochs = 0

    def begin(self, done: Done) -> None:
        """Write from now on, behind what is done."""
        self._epochs = len(done.epochs)
        self._events = summary_writer()(str(self._folder), purge_step=done.steps + 1)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._steps_per_epoch = steps

    def losses(self, steps: int, losses: dict[str, float]) -> None:
        assert self._events is not None
        for name, value in losses.items():
            self._events.add_scalar(f"loss/{name}", value, steps)

    def keep(self, epochs: list[Epoch]) -> None:
        """Have everything on disk, the metrics of ``epochs``, all of them so far, too."""
        assert self._events is not None
        for epoch in epochs[self._epochs :]:
            for name, value in [*epoch.valid.items(), ("seconds", epoch.seconds)]:
                self._events.add_scalar(f"epoch/{name}", value, epoch.number * self._steps_per_epoch)
        self._epochs = len(epochs)
        self._events.flush()


def summary_writer() -> Any:
    """The class. Raises InputError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard: the package tensorboard is not installed; pip install tensorboard") from None
    return SummaryWriter
