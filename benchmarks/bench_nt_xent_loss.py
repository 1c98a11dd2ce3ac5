"""nt_xent_loss against PyTorch written well, eager and compiled, and what people use today."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from checking import needs_native
from lightly_peer import lightly_loss
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import nt_xent_loss

pytestmark = needs_native

TOLERANCE = 2e-5  # float32 against float32
# N pairs of d = 64: the paper's |B| = 1024, m = 8 is N = 8192.
PAIRS = [1, 8, 32, 128, 1024, 2048, 4096, 8192]
LARGE = 65_536  # eager would need 200 GB


def eager(first: Tensor, second: Tensor) -> Tensor:
    """As a competent engineer writes it."""
    rows = F.normalize(torch.cat([first, second]), dim=-1)
    scores = rows @ rows.T / 0.1
    scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(rows)).roll(len(first)))


def ours(first: Tensor, second: Tensor) -> Tensor:
    return nt_xent_loss(first, second, backend="cpu")


def linear_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """torch's own loss that never holds all scores: another one, which keeps the self term and does not normalise."""
    rows = torch.cat([first, second])
    return F.linear_cross_entropy(
        rows, rows, torch.arange(len(rows)).roll(len(first)), options=torch.nn.LinearCrossEntropyOptions()
    )


def metric_learning(first: Tensor, second: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=0.1)(torch.cat([first, second]), torch.arange(len(first)).repeat(2))


def lightly() -> torch.nn.Module | None:
    try:
        return lightly_loss()(temperature=0.1)
    except ImportError:
        return None


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(benchmark: object, report: Report, request: pytest.FixtureRequest, pairs: int, backward: bool) -> None:
    if not report.timed and pairs > 1024:
        pytest.skip("too large for a smoke test")
    torch.manual_seed(0)
    first = torch.randn(pairs, 64)
    second = (first + torch.randn(pairs, 64)).requires_grad_()
    first.requires_grad_()
    functions = {"cmi_fast": ours, "eager": eager}
    if report.timed and pairs in (128, 1024, 4096, 8192):
        functions["torch.compile"] = torch.compile(eager)
    if 8 <= pairs <= 1024 and importlib.util.find_spec("pytorch_metric_learning"):
        functions["pytorch-metric-learning SupConLoss"] = metric_learning
    if pairs >= 8 and (loss := lightly()):
        functions["lightly NTXentLoss"] = loss
    yardstick = "torch linear_cross_entropy (another loss)"
    if pairs >= 1024 and hasattr(F, "linear_cross_entropy"):
        functions[yardstick] = linear_cross_entropy
    rows = 2 * pairs
    report.compare(
        benchmark,
        "nt_xent_loss",
        f"N={pairs} {'forward+backward' if backward else 'forward'}",
        {
            name: call_with(function, (first, second), torch.tensor(1.0) if backward else None)
            for name, function in functions.items()
        },
        tolerance=TOLERANCE,
        flops=(4 if backward else 1) * rows * rows * 64,
        rounds=200 if pairs <= 128 else 25 if pairs <= 1024 else 5,
        yardsticks=[yardstick] if yardstick in functions else [],
    )


def test_where_scores_would_fill_the_memory(benchmark: object, report: Report) -> None:
    if not report.timed:
        pytest.skip("too large for a smoke test")
    torch.manual_seed(0)
    leaves = [torch.randn(LARGE, 64, requires_grad=True) for _ in range(2)]
    run = {"cmi_fast": call_with(ours, leaves, torch.tensor(1.0))}
    flops = 4 * (2 * LARGE) ** 2 * 64
    report.compare(
        benchmark, "nt_xent_loss", f"N={LARGE} forward+backward", run, tolerance=TOLERANCE, flops=flops, rounds=2
    )


@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, level: str) -> None:
    pairs = 4096 if report.timed else 64
    torch.manual_seed(0)
    leaves = [torch.randn(pairs, 64, requires_grad=True) for _ in range(2)]
    best = _native.isa_levels()[-1]
    run_best = call_with(ours, leaves, torch.tensor(1.0))

    report.compare(
        benchmark,
        "nt_xent_loss",
        f"N={pairs} forward+backward, {level} against {best}",
        {
            best: run_best,
            f"level {level}": at_level(level, run_best),
            "eager": call_with(eager, leaves, torch.tensor(1.0)),
        },
        tolerance=TOLERANCE,
        rounds=5,
    )


@pytest.mark.parametrize("pairs", [1024, 8192])
def test_bfloat16_against_float32(benchmark: object, report: Report, pairs: int) -> None:
    """Rows that are already in bfloat16, as under autocast, against eager PyTorch in float32 on the same numbers."""
    if not report.timed and pairs > 1024:
        pytest.skip("too large for a smoke test")
    torch.manual_seed(0)
    halves = [x.bfloat16() for x in (torch.randn(pairs, 64), torch.randn(pairs, 64))]
    runs = {
        name: call_with(function, [x.to(dtype).requires_grad_() for x in halves], torch.tensor(1.0))
        for name, function, dtype in (
            ("cmi_fast, bfloat16", ours, torch.bfloat16),
            ("cmi_fast, float32", ours, torch.float32),
            ("eager, float32", eager, torch.float32),
        )
    }
    report.compare(
        benchmark,
        "nt_xent_loss",
        f"N={pairs} forward+backward, bfloat16",
        runs,
        tolerance=TOLERANCE,
        flops=4 * (2 * pairs) ** 2 * 64,
        rounds=25 if pairs <= 1024 else 5,
        bfloat16=True,
    )
