"""What commands show as they go: a line an epoch, and on a terminal a progress bar below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cmi_fast.training.checkpoint import Epoch
from cmi_fast.training.profile import StepProfile
from cmi_fast.training.trainer import Progress


class Display(Progress):
    def __init__(self, bar: Bar, phase: str, profile: StepProfile | None = None) -> None:
        self.bar = bar
        self.profile = profile
        self.task = bar.add_task(phase, total=None, loss="")

    def resume(self, epoch: int, step: int) -> None:
        self.bar.console.print(f"continuing in epoch {epoch} after step {step}")

    def phase(self, name: str) -> None:
        self.bar.remove_task(self.task)  # an update cannot take back a total
        self.task = self.bar.add_task(name, total=None, loss="")

    def users(self, done: int, of: int) -> None:
        self.bar.update(self.task, completed=done, total=of)

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self.bar.update(self.task, description=f"epoch {epoch}", completed=step, total=steps, loss=f"loss {loss:.3f}")
        if self.profile is not None and (table := self.profile.step(step, steps)):
            self.bar.console.print(table)

    def epoch(self, epoch: Epoch, best: bool) -> None:
        losses = "  ".join(f"{name} {value:.4f}" for name, value in epoch.losses.items())
        valid = "  ".join(f"{name} {epoch.valid[name]:.4f}" for name in ("recall@10", "recall@50"))
        mark = "  best so far" if best else ""
        self.bar.console.print(f"epoch {epoch.number}  {losses}  valid {valid}  {epoch.seconds:.1f} s{mark}")


@contextmanager
def display(phase: str, profile: bool = False) -> Iterator[Display]:
    """Shows what is going on while the block runs, ``phase`` to begin with."""
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield Display(bar, phase, StepProfile() if profile else None)
