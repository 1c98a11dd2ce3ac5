"""capsule_routing against the routing of MIND and ComiRec-DR in PyTorch, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from checking import needs_native
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import capsule_routing

pytestmark = needs_native

TOLERANCE = 5e-5  # float32 against float32
# B, L, K, d
FULL = (1024, 50, 4, 64)
CASES = [
    pytest.param(*FULL, False, id="full"),
    pytest.param(*FULL, True, id="lengths-1-50"),
    pytest.param(128, 20, 4, 64, False, id="B128-L20"),
    pytest.param(1, 50, 4, 64, False, id="B1"),
]


def make(maps: str, batch: int, length: int, interests: int, d: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Items and maps, logits, and a cotangent."""
    torch.manual_seed(0)
    shape = (d, d) if maps == "shared" else (length, interests, d, d)
    items = torch.randn(batch, length, d, requires_grad=True)
    matrices = (torch.randn(shape) * d**-0.5).requires_grad_()
    logits = torch.randn(batch, length, interests) * float(maps == "shared")
    return [items, matrices], logits, torch.randn(batch, interests, d)


def ours(items: Tensor, maps: Tensor, logits: Tensor, lengths: Tensor) -> Tensor:
    return capsule_routing(items, maps, logits.shape[-1], lengths, logits=logits, backend="cpu")


def eager(items: Tensor, maps: Tensor, logits: Tensor, lengths: Tensor) -> Tensor:
    """Products by batched matmul, no broadcast of B L K d d; votes of a shared map without copies for each interest,
    others contiguous as [B, K, L, d], which takes half the time of [B, L, K, d]."""
    inside = (torch.arange(items.shape[1]) < lengths[:, None])[:, None]  # [B, 1, L]
    if maps.dim() == 2:
        votes = (items @ maps.T)[:, None]  # [B, 1, L, d]
    else:
        mapped = torch.bmm(items.transpose(0, 1), maps.flatten(1, 2).transpose(1, 2))  # [L, B, K d]
        votes = mapped.unflatten(2, (-1, maps.shape[2])).permute(1, 2, 0, 3).contiguous()
    logits = logits.transpose(1, 2)  # [B, K, L]
    for iteration in range(3):
        live = votes if iteration == 2 else votes.detach()
        weights = torch.softmax(logits, 1) * inside
        sums = weights @ live[:, 0] if maps.dim() == 2 else (weights[:, :, None] @ live)[:, :, 0]
        square = sums.square().sum(-1, keepdim=True)
        capsules = square / (1 + square) / torch.sqrt(square + 1e-9) * sums
        if iteration < 2 and maps.dim() == 2:
            logits = logits + capsules @ live[:, 0].transpose(1, 2)
        elif iteration < 2:
            logits = logits + (live @ capsules[..., None])[..., 0]
    return capsules


def operations(maps: str, rows: int, batch: int, interests: int, d: int, backward: bool) -> int:
    """Multiply-adds of what an ideal implementation computes, times two."""
    routing = 5 * rows * interests * d  # sums and agreements of three iterations
    if maps == "shared":
        forward = routing + 5 * batch * interests * d * d
        return 2 * (forward + backward * (2 * rows * interests * d + 2 * batch * interests * d * d))
    return 2 * (routing + (3 if backward else 1) * rows * interests * d * d)


@pytest.mark.parametrize("maps", ["shared", "position"])
@pytest.mark.parametrize(("batch", "length", "interests", "d", "ragged"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(
    benchmark: object,
    report: Report,
    request: pytest.FixtureRequest,
    maps: str,
    batch: int,
    length: int,
    interests: int,
    d: int,
    ragged: bool,
    backward: bool,
) -> None:
    inputs, logits, cotangent = make(maps, batch, length, interests, d)
    lengths = torch.randint(1, length + 1, (batch,)) if ragged else torch.full((batch,), length)
    variants = {"cmi_fast": ours, "eager": eager}
    if report.timed:
        variants["compiled"] = torch.compile(eager)
    report.compare(
        benchmark,
        "capsule_routing",
        request.node.callspec.id,
        {
            name: call_with(function, (*inputs, logits, lengths), cotangent if backward else None)
            for name, function in variants.items()
        },
        tolerance=TOLERANCE,
        flops=operations(maps, int(lengths.sum()), batch, interests, d, backward),
        rounds=10 if batch > 200 else 100,
    )


@pytest.mark.parametrize("maps", ["shared", "position"])
@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, maps: str, level: str) -> None:
    inputs, logits, cotangent = make(maps, *FULL)
    best = _native.isa_levels()[-1]
    run = call_with(ours, (*inputs, logits, torch.full((FULL[0],), FULL[1])), cotangent)
    report.compare(
        benchmark,
        "capsule_routing",
        f"{maps} forward+backward, {level} against {best}",
        {best: run, f"level {level}": at_level(level, run)},
        tolerance=TOLERANCE,
        rounds=10,
    )
