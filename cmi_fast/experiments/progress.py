"""Progress over a whole experiment: what share of the steps is done, and the time left at the speed so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from cmi_fast.experiments.plan import Budget
from cmi_fast.training.trainer import Progress


class Overall:
    """Counts the steps of all systems. The work ahead is taken at most its size: pruning and early stopping save some.

    Without a terminal there is a line for each trial and run as it begins.
    """

    def __init__(self, systems: int, budget: Budget, bar: Bar) -> None:
        self._budget, self._bar = budget, bar
        self._total = systems * budget.most_steps
        self._systems = 0  # begun
        self._behind = 0  # steps of the trials and runs that are over, at most
        self._task = bar.add_task("reading", total=self._total, left="")
        self._measured_steps, self._measured_seconds = 0, 0.0

    def phase(self, name: str) -> None:
        self._bar.update(self._task, description=name)

    def system(self, name: str) -> Callable[[str, int], Progress]:
        """Begins the next system: gives what begins each of its trials and runs, by name and steps at most.

        Those that need no work, as an earlier process has done them, are passed over.
        """
        self._behind = self._systems * self._budget.most_steps
        self._systems += 1
        end = self._behind

        def begin(part: str, steps: int) -> Progress:
            kind, _, number = part.partition(" ")
            trials = self._budget.trials * self._budget.steps
            before = int(number) - 1
            place = before * self._budget.steps if kind == "trial" else trials + before * self._budget.final_steps
            self._behind = end + place
            if steps:
                self._bar.console.print(f"{self._behind / self._total:4.0%}  {name}, {part}{self._left(', ')}")
            return _Part(self, f"{name}, {part}")

        return begin

    def advance(self, description: str, steps_done: int, steps: int, seconds: float) -> None:
        """``steps_done`` of the part under way are done; the last ``steps`` of them took ``seconds``."""
        self._measured_steps += steps
        self._measured_seconds += seconds
        self._bar.update(
            self._task, description=description, completed=self._behind + steps_done, left=self._left("", steps_done)
        )

    def _left(self, before: str, steps_done: int = 0) -> str:
        if not self._measured_steps:
            return ""
        steps = self._total - self._behind - steps_done
        seconds = steps * self._measured_seconds / self._measured_steps
        return f"{before}at most {timedelta(seconds=round(seconds))} left"


class _Part(Progress):
    """One trial or run."""

    def __init__(self, overall: Overall, name: str) -> None:
        self._overall, self._name = overall, name
        self._last = time.perf_counter()

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        self._overall.advance(self._name, (epoch - 1) * steps + step, 1, now - self._last)
        self._last = now


def bar() -> Bar:
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:.0f} %  {task.fields[left]}"),
    )
    return Bar(*columns, console=console, disable=not console.is_terminal, transient=True)
