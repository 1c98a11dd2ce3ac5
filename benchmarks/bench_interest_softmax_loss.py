"""interest_softmax_loss against PyTorch written well, eager and compiled, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checking import needs_native
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import interest_softmax_loss

pytestmark = needs_native

TOLERANCE = 2e-5  # float32 against float32
# B, m, C, d
PAPER = (1024, 8, 2048, 64)
CASES = [
    pytest.param(*PAPER, id="paper"),
    pytest.param(1, 8, 2, 64, id="B1"),
    pytest.param(4, 8, 8, 64, id="B4"),
    pytest.param(16, 8, 32, 64, id="B16"),
    pytest.param(64, 8, 128, 64, id="B64"),
    pytest.param(1024, 1, 2048, 64, id="m1"),
    pytest.param(256, 64, 512, 64, id="m64"),
    pytest.param(1, 8, 20_000, 64, id="B1-C20000"),
]


def eager(interests: Tensor, candidates: Tensor, general: Tensor, targets: Tensor) -> Tensor:
    """Eq. 7 as it is written. (``max`` takes half the time of ``amax`` in the backward.)"""
    best = (interests / 0.1 @ candidates.T).max(1).values
    return F.cross_entropy(best + general @ candidates.T, targets)


def folded(interests: Tensor, candidates: Tensor, general: Tensor, targets: Tensor) -> Tensor:
    """With the general interest folded into the queries, as the kernel and the reference have it."""
    queries = interests / 0.1 + general[:, None]
    return F.cross_entropy((queries @ candidates.T).max(1).values, targets)


def ours(interests: Tensor, candidates: Tensor, general: Tensor, targets: Tensor) -> Tensor:
    return interest_softmax_loss(interests, candidates, targets, general, backend="cpu")


def make(users: int, m: int, count: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit interests, as CMI has them, and candidates with scores of order 10."""
    torch.manual_seed(0)
    interests = F.normalize(torch.randn(users, m, d), dim=-1).requires_grad_()
    candidates = torch.randn(count, d, requires_grad=True)
    general = torch.randn(users, d, requires_grad=True)
    return interests, candidates, general, torch.randint(0, count, (users,))


@pytest.mark.parametrize(("users", "m", "count", "d"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(
    benchmark: object,
    report: Report,
    request: pytest.FixtureRequest,
    users: int,
    m: int,
    count: int,
    d: int,
    backward: bool,
) -> None:
    functions = {"cmi_fast": ours, "eager": eager, "eager, folded": folded}
    if report.timed and (users, m) == (1024, 8):
        functions["torch.compile"] = torch.compile(eager)
        functions["torch.compile, folded"] = torch.compile(folded)
    pairs = users * count
    report.compare(
        benchmark,
        "interest_softmax_loss",
        request.node.callspec.id,
        {
            name: call_with(function, make(users, m, count, d), torch.tensor(1.0) if backward else None)
            for name, function in functions.items()
        },
        tolerance=TOLERANCE,
        flops=2 * pairs * d * (m + 2 * backward),  # the backward takes one interest a pair
        rounds=25 if pairs > 100_000 else 200,
    )


@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, level: str) -> None:
    inputs = make(*PAPER)
    best = _native.isa_levels()[-1]

    run_best = call_with(ours, inputs, torch.tensor(1.0))

    report.compare(
        benchmark,
        "interest_softmax_loss",
        f"paper forward+backward, {level} against {best}",
        {best: run_best, f"level {level}": at_level(level, run_best)},
        tolerance=TOLERANCE,
    )
