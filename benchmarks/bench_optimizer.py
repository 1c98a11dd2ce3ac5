"""From how many items on lazy-adam's step is faster than that of Adam, which moves every row of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measure import Report, Run
from torch import Tensor

from cmi_fast.data.distinct import distinct
from cmi_fast.models.cmi import CMI
from cmi_fast.training.config import make_config
from cmi_fast.training.trainer import build_optimizer, loss_of_rows

BATCH, LENGTH = 128, 100  # the default batch size


def make_batch(num_items: int) -> list[Tensor]:
    """The arguments of ``loss_of_rows``: histories of 58 items on average, few items in most plays."""
    rng = np.random.default_rng(0)
    history, positives, negatives = (
        (num_items * rng.random(shape) ** 3).astype(np.int64) for shape in ((BATCH, LENGTH), BATCH, BATCH)
    )
    lengths = rng.integers(16, LENGTH + 1, BATCH)
    rows, *places = (torch.from_numpy(x) for x in distinct(history, lengths, positives, negatives))
    views = torch.from_numpy(rng.random((2, BATCH, LENGTH)) < 0.5)
    return [rows, places[0], torch.from_numpy(lengths), views, *places[1:]]


def steps(optimizer: str, num_items: int) -> Run:
    model = CMI(num_items)
    updates = build_optimizer(model, make_config(optimizer=optimizer))
    batch = make_batch(num_items)

    def run() -> list[Tensor]:
        updates.zero_grad(set_to_none=True)
        loss_of_rows(model, *batch, sparse_grad=optimizer == "lazy-adam").total.backward()
        updates.step()
        return []

    return run


@pytest.mark.parametrize("num_items", [10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000])
def test_step(benchmark: object, report: Report, num_items: int) -> None:
    if not report.timed:
        num_items = 1000
    report.compare(
        benchmark,
        "optimizer",
        f"{num_items:,} items x 64",
        {name: steps(name, num_items) for name in ("lazy-adam", "adam")},
        tolerance=0.0,  # another optimiser: there is nothing to compare
        rounds=10,
        yardsticks=("adam",),
    )
