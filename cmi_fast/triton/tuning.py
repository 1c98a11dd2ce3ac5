"""Sizes of tiles: by rule, or the fastest of a few for calls of one kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

REPETITIONS = 5
_enabled = False
_fastest: dict[Hashable, tuple[Any, ...]] = {}


def autotune(enabled: bool = True) -> None:
    """From now on, time a few sizes of tiles at the first call of each kind, and run it with the fastest of them.

    A kind is a kernel with its dtype, d, options and the number of rows, up to the next power of two. Other sizes add
    in another order, so results may differ in their last bits between processes. ``False`` returns to sizes by rule.
    """
    global _enabled
    _enabled = enabled


def run_tuned(kind: Hashable, sizes: Sequence[tuple[Any, ...]], run: Callable[..., None]) -> None:
    """``run(*sizes[0])``, the rule's, or with autotuning the fastest of ``sizes``; a run may be repeated."""
    chosen = sizes[0]
    # A graph being captured takes what has been timed before.
    if _enabled and kind not in _fastest and not _capturing():
        _fastest[kind] = min(sizes, key=lambda candidate: _seconds(lambda: run(*candidate)))
    if _enabled:
        chosen = _fastest.get(kind, chosen)
    run(*chosen)


def _seconds(run: Callable[[], None]) -> float:
    """The shortest of a few runs; infinite where the tile does not fit the GPU."""
    from triton.runtime.errors import OutOfResources

    try:
        run()  # compiles
    except OutOfResources:
        return float("inf")
    times = []
    for _ in range(REPETITIONS):
        _wait()
        started = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - started)
    return min(times)


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
