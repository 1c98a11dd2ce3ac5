"""CMI's training step, whole and part by part, against the same model as plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from bench_interest_softmax_loss import eager as eager_main_loss
from bench_item_soft_assignment_pool import eager_sharing as eager_pool
from bench_item_soft_assignment_pool import work as pooling_work
from bench_nt_xent_loss import eager as eager_contrastive_loss
from checking import needs_native
from measure import Report, Run, call_with
from torch import Tensor, nn

from cmi_fast.data.distinct import distinct
from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    orthogonality_loss,
)
from cmi_fast.models.cmi import CMI
from cmi_fast.nn import GRU
from cmi_fast.training.trainer import loss_of_rows

pytestmark = needs_native

TOLERANCE = 1e-4  # of losses and gradients; float32 against float32, summed in different orders
BATCH, LENGTH, INTERESTS, DIM = 1024, 100, 8, 64
TABLE_ROWS = 77_557  # items of the paper's TakaTak log


class PlainCMI(CMI):
    """The same model and objective from what PyTorch offers, written with care."""

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        self.gru = nn.GRU(DIM, DIM, batch_first=True)  # type: ignore[assignment]

    def objective(
        self, history: Tensor, lengths: Tensor, views: Tensor, positives: Tensor, negatives: Tensor
    ) -> Tensor:
        pooled = eager_pool(history, self.items, self.categories, lengths, views)
        full, first, second = F.normalize(pooled, dim=-1)
        candidates = torch.cat([positives, negatives])
        states, _ = self.gru(self.item_vectors(history))  # type: ignore[misc]
        main = eager_main_loss(
            full, self.item_vectors(candidates), states[torch.arange(len(lengths)), lengths - 1], torch.arange(BATCH)
        )
        contrastive = 2 * eager_contrastive_loss(first.flatten(0, 1), second.flatten(0, 1))
        return main + 0.01 * contrastive + 10 * orthogonality_loss(self.categories)


def make_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """History, lengths of mean 58, the whole history and two halves of it, and distinct items as candidates."""
    torch.manual_seed(0)
    history = torch.randint(0, TABLE_ROWS, (BATCH, LENGTH))
    candidates = torch.randperm(TABLE_ROWS)[: 2 * BATCH]
    views = torch.cat([torch.ones(1, BATCH, LENGTH, dtype=torch.bool), torch.rand(2, BATCH, LENGTH) < 0.5])
    return history, torch.randint(16, LENGTH + 1, (BATCH,)), views, candidates[:BATCH], candidates[BATCH:]


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, objective: Callable[[], Tensor]
) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = objective()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        return [loss.detach(), *gradients]

    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step(benchmark: object, report: Report, precision: str) -> None:
    """Both take the same steps in turn from the same weights, so that their losses stay comparable.

    Ours takes them as training does, whose sampler finds a batch's distinct items in the background.
    """
    history, lengths, views, positives, negatives = make_batch()
    ours, plain = CMI(TABLE_ROWS), PlainCMI(TABLE_ROWS)
    plain.load_state_dict(ours.state_dict())
    arrays = distinct(*(x.numpy() for x in (history, lengths, positives, negatives)))
    rows, places, *candidates = (torch.from_numpy(x) for x in arrays)

    def our_objective() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return loss_of_rows(ours, rows, places, lengths, views[1:], *candidates).total

    report.compare(
        benchmark,
        "step",
        precision,
        {
            "cmi_fast": training_step(ours, torch.optim.Adam(ours.parameters(), fused=True), our_objective),
            "PyTorch": training_step(
                plain,
                torch.optim.Adam(plain.parameters()),
                lambda: plain.objective(history, lengths, views, positives, negatives),
            ),
        },
        tolerance=TOLERANCE if precision == "float32" else 5e-2,
        rounds=8,
    )


class Part(NamedTuple):
    """A part of the step, ours and PyTorch's, and the work that an ideal implementation has."""

    ours: Run
    plain: Run
    flops: float | None = None
    traffic: float | None = None


def pooling() -> Part:
    history, lengths, views, _, _ = make_batch()
    inputs = table(), torch.randn(INTERESTS, DIM, requires_grad=True)
    cotangent = torch.randn(len(views), BATCH, INTERESTS, DIM)

    def ours(table: Tensor, categories: Tensor) -> Tensor:
        return item_soft_assignment_pool(history, table, categories, lengths, views=views)

    def plain(table: Tensor, categories: Tensor) -> Tensor:
        return eager_pool(history, table, categories, lengths, views)

    runs = call_with(ours, inputs, cotangent), call_with(plain, inputs, cotangent)
    return Part(*runs, **pooling_work(lengths, INTERESTS, cotangent, backward=True))


def contrastive() -> Part:
    pairs = torch.randn(2, BATCH * INTERESTS, DIM)
    inputs = [x.requires_grad_() for x in pairs.unbind()]
    runs = (call_with(loss, inputs, torch.tensor(1.0)) for loss in (nt_xent_loss, eager_contrastive_loss))
    return Part(*runs, flops=4 * (2 * BATCH * INTERESTS) ** 2 * DIM)


def main_loss() -> Part:
    interests = F.normalize(torch.randn(BATCH, INTERESTS, DIM), dim=-1).requires_grad_()
    candidates = F.normalize(torch.randn(2 * BATCH, DIM), dim=-1).requires_grad_()
    inputs = interests, candidates, torch.randn(BATCH, DIM, requires_grad=True), torch.arange(BATCH)

    def ours(interests: Tensor, candidates: Tensor, general: Tensor, targets: Tensor) -> Tensor:
        return interest_softmax_loss(interests, candidates, targets, general)

    runs = (call_with(loss, inputs, torch.tensor(1.0)) for loss in (ours, eager_main_loss))
    return Part(*runs, flops=2 * BATCH * 2 * BATCH * DIM * (INTERESTS + 2))  # backward takes one interest a pair


def recurrence() -> Part:
    history, lengths, *_ = make_batch()
    gru, plain = GRU(DIM, DIM), nn.GRU(DIM, DIM, batch_first=True)
    plain.load_state_dict(gru.state_dict())
    cotangent = torch.randn(BATCH, DIM)

    def ours(table: Tensor) -> Tensor:
        return gru.from_ids(history, table, lengths, normalize=True)

    def last_state(table: Tensor) -> Tensor:
        items = F.normalize(F.embedding(history, table), dim=-1)
        return plain(items)[0][torch.arange(BATCH), lengths - 1]

    inputs = [table()]
    runs = call_with(ours, inputs, cotangent), call_with(last_state, inputs, cotangent)
    return Part(*runs, flops=2 * 3 * int(lengths.sum()) * 6 * DIM * DIM)


def adam() -> Part:
    def steps(**options: bool) -> Run:
        parameter = table()
        parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.Adam([parameter], **options)

        def run() -> list[Tensor]:
            optimizer.step()
            return []

        return run

    # Four tables are read, the gradient and both moments among them, and three written.
    return Part(steps(fused=True), steps(), traffic=7 * 4 * TABLE_ROWS * DIM)


def table() -> Tensor:
    return torch.randn(TABLE_ROWS, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("part", [pooling, contrastive, main_loss, recurrence, adam], ids=lambda part: part.__name__)
def test_parts(benchmark: object, report: Report, part: Callable[[], Part]) -> None:
    torch.manual_seed(0)
    ours, plain, flops, traffic = part()
    variants = {"cmi_fast": ours, "PyTorch": plain}
    report.compare(benchmark, "step", part.__name__, variants, tolerance=2e-5, flops=flops, traffic=traffic, rounds=8)
