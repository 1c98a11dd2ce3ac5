"""Where the time of a training step goes."""

from __future__ import annotations

import time

from torch.profiler import ProfilerActivity, profile

from cmi_fast.tables import text_table

WAITING = "waiting for the batch"  # the name under which the trainer records it
WARM_UP, STEPS = 3, 20


class StepProfile:
    """Measures steps of one epoch, those after ``WARM_UP``, ``STEPS`` of them or as many as the epoch has."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU])
        self._first = 0
        self._began = 0.0

    def step(self, step: int, steps: int) -> str | None:
        """To be called after each step of an epoch of ``steps``. The table, once, when it is there."""
        if not self._first:
            if step >= min(WARM_UP, steps - 1) and step < steps:
                self._first = step
                self._profiler.start()
                self._began = time.perf_counter()
            return None
        measured = step - self._first
        if not self._began or (measured < STEPS and step < steps):
            return None
        seconds, self._began = time.perf_counter() - self._began, 0.0
        self._profiler.stop()
        return self._table(seconds * 1e3 / measured, measured)

    def _table(self, whole: float, measured: int) -> str:
        """Milliseconds a step, by operator, forward and backward together."""
        parts: dict[str, float] = {}
        for event in self._profiler.key_averages():
            name = event.key
            if name.startswith("cmi_fast::"):
                name = name.removeprefix("cmi_fast::").removesuffix("_backward")
            elif name.startswith("Optimizer.step#"):
                name = "optimizer"
            elif name != WAITING:
                continue
            parts[name] = parts.get(name, 0.0) + event.cpu_time_total / 1e3 / measured
        parts = dict(sorted(parts.items(), key=lambda part: -part[1]))
        parts["everything else"] = whole - sum(parts.values())
        parts["a step"] = whole
        rows = [[name, f"{ms:.1f}", f"{ms / whole:.0%}"] for name, ms in parts.items()]
        return text_table([[f"mean of {measured} steps", "ms", "share"], *rows])
