"""item_soft_assignment_pool, of one view and of three, against PyTorch written well, eager and compiled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checking import needs_native
from measure import Report, call_with
from torch import Tensor

from cmi_fast.functional import item_soft_assignment_pool

pytestmark = needs_native

TOLERANCE = 2e-5  # float32 against float32
TABLE_ROWS = 77_557  # items of the paper's TakaTak log
# B, m; sequences of up to 100 items, 58 on average, d = 64
CASES = [
    pytest.param(1024, 8, id="paper"),
    pytest.param(1, 8, id="B1"),
    pytest.param(4, 8, id="B4"),
    pytest.param(16, 8, id="B16"),
    pytest.param(64, 8, id="B64"),
    pytest.param(1024, 1, id="m1"),
    pytest.param(256, 64, id="m64"),
]


def assign(ids: Tensor, table: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
    unit = F.normalize(F.embedding(ids, table), dim=-1)
    return unit, torch.softmax(unit @ F.normalize(categories, dim=-1).T / 0.1, dim=-1)


def eager(ids: Tensor, table: Tensor, categories: Tensor, lengths: Tensor) -> Tensor:
    unit, assignment = assign(ids, table, categories)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return (assignment * mask[..., None]).transpose(1, 2) @ unit


def eager_sharing(ids: Tensor, table: Tensor, categories: Tensor, lengths: Tensor, views: Tensor) -> Tensor:
    """The assignment once for all views, as it does not depend on them."""
    unit, assignment = assign(ids, table, categories)
    views = views & (torch.arange(ids.shape[1]) < lengths[:, None])
    return torch.stack([(assignment * view[..., None]).transpose(1, 2) @ unit for view in views])


def eager_each(ids: Tensor, table: Tensor, categories: Tensor, lengths: Tensor, views: Tensor) -> Tensor:
    """Every view as a batch of its own, as models do that feed sub-sequences."""
    pooled = []
    for view in views & (torch.arange(ids.shape[1]) < lengths[:, None]):
        unit, assignment = assign(ids, table, categories)
        pooled.append((assignment * view[..., None]).transpose(1, 2) @ unit)
    return torch.stack(pooled)


def ours(ids: Tensor, table: Tensor, categories: Tensor, lengths: Tensor, views: Tensor | None = None) -> Tensor:
    return item_soft_assignment_pool(ids, table, categories, lengths, views=views, backend="cpu")


def make(batch: int, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    table = torch.randn(TABLE_ROWS, 64, requires_grad=True)
    ids = torch.randint(0, TABLE_ROWS, (batch, 100))
    return ids, table, torch.randn(m, 64, requires_grad=True), torch.randint(16, 101, (batch,))


def work(lengths: Tensor, m: int, cotangent: Tensor, backward: bool) -> dict[str, float]:
    rows = int(lengths.sum())
    row = 64 * 4
    return {
        "flops": 2 * (5 if backward else 2) * rows * m * 64,
        "traffic": rows * row + cotangent.nbytes + backward * (rows * row + TABLE_ROWS * row + cotangent.nbytes),
    }


@pytest.mark.parametrize(("batch", "m"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_one_view(
    benchmark: object, report: Report, request: pytest.FixtureRequest, batch: int, m: int, backward: bool
) -> None:
    inputs = make(batch, m)
    cotangent = torch.randn(batch, m, 64)
    functions = {"cmi_fast": ours, "eager": eager}
    if report.timed and (batch, m) == (1024, 8):
        functions["torch.compile"] = torch.compile(eager)
    report.compare(
        benchmark,
        "item_soft_assignment_pool",
        request.node.callspec.id,
        {name: call_with(function, inputs, cotangent if backward else None) for name, function in functions.items()},
        tolerance=TOLERANCE,
        **work(inputs[-1], m, cotangent, backward),
        rounds=25 if batch > 100 else 100,
    )


@pytest.mark.parametrize(("batch", "m"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_three_views(
    benchmark: object, report: Report, request: pytest.FixtureRequest, batch: int, m: int, backward: bool
) -> None:
    """The whole history and two random halves of it, as CMI pools them."""
    inputs = make(batch, m)
    views = torch.cat([torch.ones(1, batch, 100, dtype=torch.bool), torch.rand(2, batch, 100) < 0.5])
    cotangent = torch.randn(3, batch, m, 64)
    functions = {"cmi_fast": ours, "eager, sharing p": eager_sharing, "eager": eager_each}
    if report.timed and (batch, m) == (1024, 8):
        functions["torch.compile"] = torch.compile(eager_sharing)
    report.compare(
        benchmark,
        "item_soft_assignment_pool",
        f"3 views {request.node.callspec.id}",
        {
            name: call_with(function, (*inputs, views), cotangent if backward else None)
            for name, function in functions.items()
        },
        tolerance=TOLERANCE,
        **work(inputs[-1], m, cotangent, backward),
        rounds=25 if batch > 100 else 100,
    )
