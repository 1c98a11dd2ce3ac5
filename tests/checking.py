"""What the tests of all operators measure with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmi_fast import _native, triton
from cmi_fast.reference.rows import accumulation_type

has_triton = triton.obstacle(torch.empty(0)) is None
has_cpu = _native.available and torch.empty(0).is_cpu  # not under --device cuda
BACKENDS = ["reference"] + (["cpu"] if has_cpu else []) + (["triton"] if has_triton else [])
# Operators with CUDA kernels, on a GPU.
WITH_CUDA = [*BACKENDS, "cuda"] if _native.cuda_obstacle is None and torch.empty(0).is_cuda else BACKENDS
refuses_cuda = pytest.mark.skipif("cuda" in WITH_CUDA, reason="the CUDA kernels can run")
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
    truth: Sequence[NDArray[Any]] | None = None,
) -> None:
    """|ours - exact| <= |same-precision PyTorch - exact| + tolerance.

    Both relative to the tensor's largest magnitude, or to 1, the inputs' and the cotangent's own order of magnitude.

    ``exact`` is the reference: in float64 it is the truth, unless ``truth`` is given, in the inputs' dtype the error
    PyTorch itself makes.
    """
    ours = with_gradients(function, inputs, cotangent)
    torchs = with_gradients(exact, inputs, cotangent)
    if truth is None:
        truth = [x.cpu().numpy() for x in with_gradients(exact, [x.double() for x in inputs], cotangent.double())]
    for index, (our, their, true) in enumerate(zip(ours, torchs, truth, strict=True)):
        scale = max(np.abs(true).max(initial=0), 1)
        error, budget = (np.abs(x.double().cpu().numpy() - true).max(initial=0) / scale for x in (our, their))
        assert error <= budget + tolerance, f"tensor {index}: error {error:.2e}, PyTorch's {budget:.2e}"


def rounding(dtype: torch.dtype) -> float:
    """Tolerance of an error budget for results of order one in ``dtype``: a few roundings of sums whose order differs.

    Half types round once more, at the end, where the middle between two of their numbers may go either way.
    """
    few = 8 * torch.finfo(accumulation_type(dtype)).eps
    return few + torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else few


def pool_in_long_double(
    rows: Tensor, categories: Tensor, sequence: Tensor, views: Tensor, cotangent: Tensor
) -> list[NDArray[np.longdouble]]:
    """Interests [V, B, m, d] of float64 ``rows`` [T, d], row t in ``sequence[t]``; gradients of rows and categories.

    What is true where the reference itself is only as wide as what is tested; temperature 0.1.
    """
    x, c, given = (tensor.numpy().astype(np.longdouble) for tensor in (rows, categories, cotangent))
    place, member = sequence.numpy(), views.numpy().astype(np.longdouble)
    norm, category_norm = np.sqrt((x * x).sum(1, keepdims=True)), np.sqrt((c * c).sum(1, keepdims=True))
    v, g = x / norm, c / category_norm
    e = np.exp((v @ g.T - (v @ g.T).max(1, keepdims=True)) / np.longdouble(0.1))
    p = e / e.sum(1, keepdims=True)
    pooled = np.zeros_like(given)
    for view, inside in zip(pooled, member, strict=True):
        np.add.at(view, place, (p * inside[:, None])[:, :, None] * v[:, None, :])
    u = sum(inside[:, None, None] * of_view[place] for inside, of_view in zip(member, given, strict=True))
    a = (u * v[:, None, :]).sum(2)
    ds = p * (a - (p * a).sum(1, keepdims=True)) / np.longdouble(0.1)
    dv, dg = (p[:, :, None] * u).sum(1) + ds @ g, ds.T @ v
    dx, dc = dv - v * (v * dv).sum(1, keepdims=True), dg - g * (g * dg).sum(1, keepdims=True)
    return [pooled, dx / norm, dc / category_norm]


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
