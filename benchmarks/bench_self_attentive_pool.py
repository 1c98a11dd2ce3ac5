"""self_attentive_pool against ComiRec-SA's attention in PyTorch, eager and compiled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checking import needs_native
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import self_attentive_pool

pytestmark = needs_native

TOLERANCE = 5e-5  # float32 against float32
# B, L, K, d; h = 4 d
FULL = (1024, 50, 4, 64)
CASES = [
    pytest.param(*FULL, False, id="full"),
    pytest.param(*FULL, True, id="lengths-1-50"),
    pytest.param(128, 20, 4, 64, False, id="B128-L20"),
    pytest.param(1, 50, 4, 64, False, id="B1"),
]


def make(batch: int, length: int, interests: int, d: int) -> tuple[list[Tensor], Tensor]:
    """Items, weight, queries, bias and positions, and a cotangent."""
    torch.manual_seed(0)
    shapes = [(batch, length, d), (4 * d, d), (interests, 4 * d), (4 * d,), (length, d)]
    scales = [1, d**-0.5, d**-0.5, 1, 1]
    inputs = [(torch.randn(shape) * scale).requires_grad_() for shape, scale in zip(shapes, scales, strict=True)]
    return inputs, torch.randn(batch, interests, d)


def ours(items: Tensor, weight: Tensor, queries: Tensor, bias: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
    return self_attentive_pool(items, weight, queries, lengths, bias=bias, positions=positions, backend="cpu")


def eager(items: Tensor, weight: Tensor, queries: Tensor, bias: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(items + positions, weight, bias))
    padding = torch.arange(items.shape[1]) >= lengths[:, None]
    scores = (hidden @ queries.T).masked_fill(padding[..., None], torch.finfo(items.dtype).min)
    return torch.softmax(scores, 1).transpose(1, 2) @ items


@pytest.mark.parametrize(("batch", "length", "interests", "d", "ragged"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(
    benchmark: object,
    report: Report,
    request: pytest.FixtureRequest,
    batch: int,
    length: int,
    interests: int,
    d: int,
    ragged: bool,
    backward: bool,
) -> None:
    inputs, cotangent = make(batch, length, interests, d)
    lengths = torch.randint(1, length + 1, (batch,)) if ragged else torch.full((batch,), length)
    variants = {"cmi_fast": ours, "eager": eager}
    if report.timed:
        variants["compiled"] = torch.compile(eager)
    report.compare(
        benchmark,
        "self_attentive_pool",
        request.node.callspec.id,
        {
            name: call_with(function, (*inputs, lengths), cotangent if backward else None)
            for name, function in variants.items()
        },
        tolerance=TOLERANCE,
        flops=2 * (3 if backward else 1) * int(lengths.sum()) * 4 * d * d,  # but for what is computed again
        rounds=10 if batch > 200 else 100,
    )


@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, level: str) -> None:
    inputs, cotangent = make(*FULL)
    best = _native.isa_levels()[-1]
    run = call_with(ours, (*inputs, torch.full((FULL[0],), FULL[1])), cotangent)
    report.compare(
        benchmark,
        "self_attentive_pool",
        f"full forward+backward, {level} against {best}",
        {best: run, f"level {level}": at_level(level, run)},
        tolerance=TOLERANCE,
        rounds=10,
    )
