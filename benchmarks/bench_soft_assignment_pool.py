"""soft_assignment_pool against PyTorch written well, eager and compiled, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checking import needs_native
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import soft_assignment_pool

pytestmark = needs_native

TOLERANCE = 2e-5  # float32 against float32
# B, L, mean length, m, d
PAPER = (1024, 100, 58, 8, 64)
CASES = [
    pytest.param(*PAPER, id="paper"),
    pytest.param(1, 100, 58, 8, 64, id="B1"),
    pytest.param(16, 100, 58, 8, 64, id="B16"),
    pytest.param(64, 100, 58, 8, 64, id="B64"),
    pytest.param(1024, 100, 58, 1, 64, id="m1"),
    pytest.param(256, 100, 58, 64, 64, id="m64"),
    pytest.param(1024, 50, 50, 8, 128, id="d128-unpadded"),
]


def eager(items: Tensor, categories: Tensor, lengths: Tensor) -> Tensor:
    """As a competent engineer writes it: no copies, padding masked once on the small tensor."""
    unit = F.normalize(items, dim=-1)
    scores = unit @ F.normalize(categories, dim=-1).T
    mask = torch.arange(items.shape[1]) < lengths[:, None]
    assignment = torch.softmax(scores / 0.1, dim=-1) * mask[..., None]
    return assignment.transpose(1, 2) @ unit


def make(batch: int, length: int, mean: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    items = torch.randn(batch, length, d, requires_grad=True)
    categories = torch.randn(m, d, requires_grad=True)
    spread = length - mean
    lengths = torch.randint(mean - spread, mean + spread + 1, (batch,))
    return items, categories, lengths, torch.randn(batch, m, d)


def ours(items: Tensor, categories: Tensor, lengths: Tensor) -> Tensor:
    return soft_assignment_pool(items, categories, lengths, backend="cpu")


@pytest.mark.parametrize(("batch", "length", "mean", "m", "d"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(
    benchmark: object,
    report: Report,
    request: pytest.FixtureRequest,
    batch: int,
    length: int,
    mean: int,
    m: int,
    d: int,
    backward: bool,
) -> None:
    items, categories, lengths, cotangent = make(batch, length, mean, m, d)
    functions = {"cmi_fast": ours, "eager": eager}
    if report.timed and (batch, m) == (1024, 8):
        functions["torch.compile"] = torch.compile(eager)

    rows = int(lengths.sum())
    products = 5 if backward else 2  # of rows x m x d multiply-adds; the backward's own forward not counted
    read_and_written = rows * d * 4 + cotangent.nbytes + backward * (rows * d * 4 + items.nbytes + cotangent.nbytes)
    report.compare(
        benchmark,
        "soft_assignment_pool",
        request.node.callspec.id,
        {
            name: call_with(function, (items, categories, lengths), cotangent if backward else None)
            for name, function in functions.items()
        },
        tolerance=TOLERANCE,
        flops=2 * products * rows * m * d,
        traffic=read_and_written,
        rounds=25 if batch > 100 else 200,
    )


@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, level: str) -> None:
    items, categories, lengths, cotangent = make(*PAPER)
    best = _native.isa_levels()[-1]

    run_best = call_with(ours, (items, categories, lengths), cotangent)

    report.compare(
        benchmark,
        "soft_assignment_pool",
        f"paper forward+backward, {level} against {best}",
        {best: run_best, f"level {level}": at_level(level, run_best)},
        tolerance=TOLERANCE,
    )
