"""orthogonality_loss: Eq. 4 and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from checking import with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from cmi_fast.functional import orthogonality_loss


def test_equals_the_equation() -> None:
    categories = torch.randn(5, 4, dtype=torch.float64)
    expected = sum(
        float(a @ b / (a.norm() * b.norm())) ** 2
        for i, a in enumerate(categories)
        for j, b in enumerate(categories)
        if i != j
    )
    assert float(orthogonality_loss(categories)) == pytest.approx(expected, rel=1e-12)


def test_bounds() -> None:
    assert orthogonality_loss(3 * torch.eye(4)) == 0
    assert orthogonality_loss(torch.ones(4, 1)) == 4 * 3
    assert orthogonality_loss(torch.randn(1, 7)) == 0


def test_derivatives() -> None:
    categories = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthogonality_loss, categories)
    assert torch.autograd.gradgradcheck(orthogonality_loss, categories)


@given(seed=st.integers(0, 2**31), m=st.integers(1, 9), d=st.integers(1, 9))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(seed: int, m: int, d: int) -> None:
    torch.manual_seed(seed)
    categories = torch.randn(m, d, dtype=torch.float64)
    loss = orthogonality_loss(categories)
    torch.testing.assert_close(orthogonality_loss(categories[torch.randperm(m)]), loss)
    torch.testing.assert_close(orthogonality_loss(categories * torch.randn(m, 1)), loss)
    assert 0 <= loss <= m * (m - 1) + 1e-12


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_categories_does_not_matter(scale: float) -> None:
    categories = torch.randn(4, 6)
    torch.testing.assert_close(orthogonality_loss(categories * scale), orthogonality_loss(categories))


def test_zero_rows_and_nan() -> None:
    categories = torch.randn(4, 3)
    categories[1] = 0
    loss, gradient = with_gradients(orthogonality_loss, [categories], torch.tensor(1.0))
    torch.testing.assert_close(loss, orthogonality_loss(categories[[0, 2, 3]]))
    assert not gradient[1].any()
    assert gradient[0].any()
    categories[2, 0] = math.nan
    assert orthogonality_loss(categories).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast(dtype: torch.dtype) -> None:
    categories = torch.randn(8, 16)
    half = categories.to(dtype)
    loss, gradient = with_gradients(orthogonality_loss, [half], torch.tensor(1.0))
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), orthogonality_loss(half.double()), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype):
        assert torch.equal(orthogonality_loss(categories), loss)


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(orthogonality_loss, fullgraph=True, backend="aot_eager")
    categories = torch.randn(4, 5)
    expected = with_gradients(orthogonality_loss, [categories], torch.tensor(1.0))
    for our, their in zip(with_gradients(compiled, [categories], torch.tensor(1.0)), expected, strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize(
    ("error", "message", "categories"),
    [
        (TypeError, r"categories: expected a tensor \[m, d\], found NoneType", None),
        (TypeError, r"categories: expected a dtype among .*found int64 \[2, 3\]", torch.zeros(2, 3).long()),
        (ValueError, r"categories: expected shape \[m, d\], found float32 \[3\]", torch.zeros(3)),
        (ValueError, r"categories: .* without a zero, found \[0, 3\]", torch.zeros(0, 3)),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, categories: object) -> None:
    with pytest.raises(error, match=message):
        orthogonality_loss(categories)
