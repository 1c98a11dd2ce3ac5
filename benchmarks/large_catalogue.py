"""A catalogue of ten million items: ``python benchmarks/large_catalogue.py [adam | lazy-adam] [ITEMS] [STEPS]``.

Trains and recommends to 200 users, and prints what each took and the peak memory of the process.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from cmi_fast.data import Histories
from cmi_fast.ranking import Ranker
from cmi_fast.training.checkpoint import Epoch
from cmi_fast.training.config import load_config
from cmi_fast.training.trainer import InMemory, Progress, build_model, candidate_frequency, train


class Nowhere(InMemory):
    """Keeps nothing."""

    def keep_best(self) -> None: ...
    def restore_best(self) -> None: ...


class Report(Progress):
    def __init__(self) -> None:
        self.last, self.steps = time.perf_counter(), [0.0]

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now

    def epoch(self, epoch: Epoch, best: bool) -> None:
        print(
            f"{len(self.steps) - 1} steps: {epoch.seconds:.1f} s, median step {np.median(self.steps[1:]) * 1e3:.1f} ms"
        )


def main(optimizer: str = "lazy-adam", items: str = "10_000_000", steps: str = "200") -> None:
    num_items = int(items)
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(5000), 60)
    plays = Histories.group(owners, (num_items * rng.random(len(owners)) ** 3).astype(np.int64), 5000)
    config = load_config(settings=[f"optimizer={optimizer}", f"steps_per_epoch={steps}", "epochs=1"])
    started = time.perf_counter()
    model = build_model(config, num_items, candidate_frequency(plays, num_items))
    print(f"{num_items:,} items x {config.dim}, {optimizer}: model {time.perf_counter() - started:.1f} s")
    ranker = Ranker(model, config, np.arange(num_items), np.arange(num_items), np.zeros(num_items, np.int64))

    def evaluate() -> dict[str, float]:
        started = time.perf_counter()
        _, found = ranker.rank(plays.select(np.arange(200)), 50)
        assert found.shape == (200, 50) and (found >= 0).all()
        print(f"top 50 for 200 users: {time.perf_counter() - started:.1f} s")
        return {"recall@50": 0.0}

    train(model, plays, config, evaluate, Nowhere(model), Report())
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
