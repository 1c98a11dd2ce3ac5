"""What the tests of all operators measure with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from cmi_fast import _native, triton
from cmi_fast.reference.rows import accumulation_type

has_triton = triton.obstacle(torch.empty(0)) is None
has_cpu = _native.available and torch.empty(0).is_cpu  # not under --device cuda
BACKENDS = ["reference"] + (["cpu"] if has_cpu else []) + (["triton"] if has_triton else [])
needs_native = pytest.mark.skipif(not has_cpu, reason="no compiled operators for this device")
needs_triton = pytest.mark.skipif(not has_triton, reason="Triton is not installed")


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The output of ``function(*inputs)`` and the gradients of all inputs for a fixed cotangent.

    A random cotangent, never ``sum()``: assignments sum to one over the interests, which would hide the categories'.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, cotangent.to(output.dtype))
    return [output.detach(), *gradients]


def assert_within_budget(
    function: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    cotangent: Tensor,
    tolerance: float,
) -> None:
    """|ours - exact| <= |same-precision PyTorch - exact| + tolerance.

    Both relative to the tensor's largest magnitude, or to 1, the inputs' and the cotangent's own order of magnitude.

    ``exact`` is the reference: in float64 it is the truth, in the inputs' dtype the error PyTorch itself makes.
    """
    wide = [x.double() for x in inputs]
    ours = with_gradients(function, inputs, cotangent)
    torchs = with_gradients(exact, inputs, cotangent)
    truth = with_gradients(exact, wide, cotangent.double())
    for index, (our, their, true) in enumerate(zip(ours, torchs, truth, strict=True)):
        scale = true.abs().max().clamp_min(1)
        error, budget = ((x.double() - true).abs().max() / scale for x in (our, their))
        assert error <= budget + tolerance, f"tensor {index}: error {error:.2e}, PyTorch's {budget:.2e}"


def rounding(dtype: torch.dtype) -> float:
    """Tolerance of an error budget for results of order one in ``dtype``: a few roundings of sums whose order differs.

    Half types round once more, at the end, where the middle between two of their numbers may go either way. In float64
    the truth is the reference itself, with as many roundings of its own.
    """
    few = 8 * torch.finfo(accumulation_type(dtype)).eps
    if dtype == torch.float64:
        return 2 * few
    return few + torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else few


def make_sequences(batch: int, length: int, m: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Items [B, L, d], categories [m, d] and lengths [B]."""
    items = torch.randn(batch, length, d, dtype=dtype)
    categories = torch.randn(m, d, dtype=dtype)
    lengths = torch.randint(0, length + 1, (batch,))
    return items, categories, lengths


def to_jagged(items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Padded ``items`` [B, L, ...] as rows [T, ...] and offsets [B + 1]."""
    rows = torch.cat([row[:n] for row, n in zip(items, lengths, strict=True)])
    return rows, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def pool_literally(items: Tensor, categories: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """Eq. 1-3 for one item at a time, in Python's own floats."""
    pooled = torch.zeros(len(items), *categories.shape, dtype=torch.float64)
    for b, count in enumerate(lengths.tolist()):
        for v in items[b, :count]:
            cosine = [float(v @ g / (v.norm() * g.norm())) for g in categories]
            weight = [math.exp(c / temperature) for c in cosine]
            for k, w in enumerate(weight):
                pooled[b, k] += w / sum(weight) * v / v.norm()
    return pooled
