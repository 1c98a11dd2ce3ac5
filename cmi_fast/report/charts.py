"""Lines and axes for the page's charts, as numbers: the templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Chart:
    """One curve over epochs, with horizontal lines to compare it with."""

    title: str
    points: list[tuple[float, float, int, float]]  # x, y, epoch, value
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    levels: list[tuple[float, str, float]]  # y, name, value
    best: int | None  # the epoch to mark
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in self.points)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, ``most`` intervals at most."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    rough = span / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in STEPS if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def curve(
    title: str,
    values: Sequence[float],
    *,
    levels: Sequence[tuple[str, float]] = (),
    best: int | None = None,
    from_zero: bool = False,
) -> Chart:
    """The chart of ``values`` of epochs 1, 2, ..."""
    everything = [*values, *(value for _, value in levels)]
    rows = ticks(0.0 if from_zero else min(everything), max(everything))
    epochs = len(values)
    every = max(1, math.ceil(epochs / 8))

    def x(epoch: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (0.5 if epochs == 1 else (epoch - 1) / (epochs - 1))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (rows[-1] - value) / (rows[-1] - rows[0])

    return Chart(
        title,
        [(x(epoch), y(value), epoch, value) for epoch, value in enumerate(values, start=1)],
        [(x(epoch), str(epoch)) for epoch in range(1, epochs + 1, every)],
        [(y(row), f"{row:.6g}") for row in rows],
        sorted(((y(value), name, value) for name, value in levels), key=lambda level: level[0]),
        best,
    )
