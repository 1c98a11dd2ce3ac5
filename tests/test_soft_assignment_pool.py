"""soft_assignment_pool: the equations themselves, properties, edge cases and errors, for every backend."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from checking import BACKENDS, WITH_CUDA, make_sequences, pool_literally, refuses_cuda, to_jagged, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cmi_fast import nn
from cmi_fast.functional import soft_assignment_pool


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_equals_the_equations(backend: str) -> None:
    items, categories, lengths = make_sequences(3, 6, 4, 5)
    pooled = soft_assignment_pool(items, categories, lengths, temperature=0.3, backend=backend)
    torch.testing.assert_close(pooled, pool_literally(items, categories, lengths, 0.3), rtol=1e-12, atol=1e-12)


# The kernel also beyond one block of items and one vector of categories.
GRADCHECKS = [("reference", 2, 5, 3, 7), ("reference", 1, 1, 1, 1)]
GRADCHECKS += [
    (backend, *shape)
    for backend in ("cpu", "triton")
    for shape in [(2, 5, 3, 7), (3, 17, 9, 10), (1, 1, 1, 1)]
    if backend in BACKENDS
]


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize(("backend", "batch", "length", "m", "d"), GRADCHECKS)
def test_gradcheck(backend: str, jagged: bool, batch: int, length: int, m: int, d: int) -> None:
    items, categories, lengths = make_sequences(batch, length, m, d)
    offsets = None
    if jagged:
        items, offsets = to_jagged(items, lengths)
        lengths = None
    temperature = torch.tensor(0.4, dtype=torch.float64)
    cotangent = torch.randn(batch, m, d, dtype=torch.float64)

    def pooled(items: Tensor, categories: Tensor, temperature: Tensor) -> Tensor:
        result = soft_assignment_pool(
            items, categories, lengths, offsets=offsets, temperature=temperature, backend=backend
        )
        return (result * cotangent).sum()

    inputs = [x.requires_grad_() for x in (items, categories, temperature)]
    # The interpreter takes its time: there, along one random direction.
    assert torch.autograd.gradcheck(pooled, inputs, fast_mode=backend == "triton")


def test_second_derivatives_of_the_reference() -> None:
    items, categories, lengths = make_sequences(2, 3, 3, 4)
    inputs = items.requires_grad_(), categories.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda v, g: soft_assignment_pool(v, g, lengths, temperature=0.5, backend="reference"), inputs
    )


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_scale_of_the_inputs_does_not_matter(backend: str, scale: float) -> None:
    items, categories, lengths = make_sequences(2, 9, 4, 6, torch.float32)
    expected = soft_assignment_pool(items, categories, lengths, backend=backend)
    cotangent = torch.randn_like(expected)

    def pool(items: Tensor, categories: Tensor) -> Tensor:
        return soft_assignment_pool(items, categories, lengths, backend=backend)

    pooled, items_grad, categories_grad = with_gradients(pool, (items * scale, categories / scale), cotangent)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    _, items_base, categories_base = with_gradients(pool, (items, categories), cotangent)
    torch.testing.assert_close(items_grad * scale, items_base, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(categories_grad / scale, categories_base, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_zero_rows_are_zero_and_get_zero_gradients(backend: str, dtype: torch.dtype) -> None:
    items, categories, _ = make_sequences(2, 4, 3, 5, dtype)
    items[0, 1] = 0
    categories[2] = 0
    pooled, items_grad, categories_grad = with_gradients(
        lambda v, g: soft_assignment_pool(v, g, backend=backend), (items, categories), torch.randn(2, 3, 5)
    )
    without = soft_assignment_pool(items[:1, [0, 2, 3]], categories, backend=backend)
    torch.testing.assert_close(pooled[:1], without)
    assert not items_grad[0, 1].any()
    assert not categories_grad[2].any()
    assert items_grad[0, 0].any()


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan(backend: str, bad: float) -> None:
    items, categories, lengths = make_sequences(3, 4, 3, 5, torch.float32)
    lengths[:] = 4
    items[1, 2, 3] = bad
    pooled = soft_assignment_pool(items, categories, lengths, backend=backend)
    assert pooled[1].isnan().all()
    assert pooled[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_empty_sequences_and_batches(backend: str) -> None:
    items, categories, _ = make_sequences(3, 4, 3, 5)
    none = torch.zeros(3, dtype=torch.int64)
    pooled, items_grad, categories_grad = with_gradients(
        lambda v, g: soft_assignment_pool(v, g, none, backend=backend), (items, categories), torch.randn(3, 3, 5)
    )
    assert not pooled.any()
    assert not items_grad.any()
    assert not categories_grad.any()
    assert soft_assignment_pool(items[:0], categories, backend=backend).shape == (0, 3, 5)
    assert soft_assignment_pool(items[:, :0], categories, backend=backend).shape == (3, 3, 5)
    offsets = torch.zeros(4, dtype=torch.int32)
    assert not soft_assignment_pool(items[0, :0], categories, offsets=offsets, backend=backend).any()


@pytest.mark.parametrize("backend", WITH_CUDA)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 5), length=st.integers(1, 20), m=st.integers(1, 9))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(backend: str, seed: int, batch: int, length: int, m: int) -> None:
    torch.manual_seed(seed)
    items, categories, lengths = make_sequences(batch, length, m, 6)

    def pool(items: Tensor, categories: Tensor = categories, lengths: Tensor | None = lengths, **kw: Tensor) -> Tensor:
        return soft_assignment_pool(items, categories, lengths, backend=backend, **kw)

    pooled = pool(items)
    order = torch.randperm(m)
    torch.testing.assert_close(pool(items, categories[order]), pooled[:, order])
    users = torch.randperm(batch)
    torch.testing.assert_close(pool(items[users], lengths=lengths[users]), pooled[users])
    torch.testing.assert_close(pool(F.pad(items, (0, 0, 0, 3), value=7.0)), pooled)
    rows, offsets = to_jagged(items, lengths)
    torch.testing.assert_close(pool(rows, lengths=None, offsets=offsets), pooled)
    # Every item spreads a weight of one: the interests add up to the sum of the unit vectors.
    member = (torch.arange(length) < lengths[:, None])[..., None]
    torch.testing.assert_close(pooled.sum(1), (F.normalize(items, dim=-1) * member).sum(1))


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_strided_inputs(backend: str) -> None:
    items, categories, lengths = make_sequences(3, 4, 3, 5)
    strided = items.transpose(0, 2).contiguous().transpose(0, 2)
    expanded = categories[:1].expand(3, -1)
    expected = soft_assignment_pool(items, expanded.clone(), lengths, backend=backend)
    torch.testing.assert_close(soft_assignment_pool(strided, expanded, lengths, backend=backend), expected)
    every_other = torch.stack([lengths, -lengths], 1).flatten()[::2].to(torch.int32)
    torch.testing.assert_close(soft_assignment_pool(items, expanded, every_other, backend=backend), expected)
    # A sum's cotangent is one number, expanded.
    leaf = items.clone().requires_grad_()
    soft_assignment_pool(leaf, categories, lengths, backend=backend)[..., 0].sum().backward()
    cotangent = torch.zeros(3, 3, 5, dtype=torch.float64)
    cotangent[..., 0] = 1
    pool = functools.partial(soft_assignment_pool, categories=categories, lengths=lengths, backend=backend)
    torch.testing.assert_close(leaf.grad, with_gradients(lambda v: pool(v), [items], cotangent)[1])


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_types_are_summed_in_float32(backend: str, dtype: torch.dtype) -> None:
    items, categories, lengths = make_sequences(3, 4, 3, 5, dtype)
    pooled = soft_assignment_pool(items, categories, lengths, backend=backend)
    assert pooled.dtype == dtype
    exact = soft_assignment_pool(items.double(), categories.double(), lengths)
    torch.testing.assert_close(pooled.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_views_pool_sub_sequences(backend: str) -> None:
    items, categories, lengths = make_sequences(3, 6, 4, 5)
    views = torch.rand(2, 3, 6) < 0.5
    pooled = soft_assignment_pool(items, categories, lengths, views=views, backend=backend)
    for view, interests in zip(views, pooled, strict=True):
        chosen = [row[:n][keep[:n]] for row, n, keep in zip(items, lengths, view, strict=True)]
        offsets = torch.tensor([0, *(len(c) for c in chosen)]).cumsum(0)
        torch.testing.assert_close(interests, soft_assignment_pool(torch.cat(chosen), categories, offsets=offsets))


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_autocast(backend: str) -> None:
    items, categories, lengths = make_sequences(2, 3, 4, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = soft_assignment_pool(items, categories, lengths, backend=backend)
    expected = soft_assignment_pool(items.bfloat16(), categories.bfloat16(), lengths, backend=backend)
    assert torch.equal(pooled, expected)
    assert pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_any_shape_and_temperature(backend: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()  # the other parameters' graphs count against one limit

    def pool(items: Tensor, categories: Tensor, lengths: Tensor, temperature: float) -> Tensor:
        return soft_assignment_pool(items, categories, lengths, temperature=temperature, backend=backend)

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch, temperature in ((2, 0.1), (3, 0.2), (4, 0.3)):
        inputs = make_sequences(batch, 6, 4, 5, torch.float32)
        torch.testing.assert_close(compiled(*inputs, temperature), pool(*inputs, temperature))


def test_shapes_without_values() -> None:
    """Meta and fake tensors have shapes only."""
    items, categories, lengths = make_sequences(3, 6, 4, 5)
    meta = soft_assignment_pool(items.to("meta"), categories.to("meta"), lengths.to("meta"))
    assert meta.shape == (3, 4, 5) and meta.is_meta
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (items, categories, lengths)]
        assert soft_assignment_pool(*fake).shape == (3, 4, 5)


@pytest.mark.parametrize("backend", WITH_CUDA)
def test_compiles_as_one_graph(backend: str) -> None:
    layer = nn.SoftAssignmentPooling(4, 5, backend=backend)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    items, _, lengths = make_sequences(3, 6, 4, 5, torch.float32)
    for module in (layer, compiled):
        layer.zero_grad()
        module(items, lengths).square().sum().backward()
        if module is layer:
            expected = layer.categories.grad.clone()
    torch.testing.assert_close(layer.categories.grad, expected)
    torch.testing.assert_close(compiled(items, lengths), layer(items, lengths))


def test_module_is_the_function() -> None:
    layer = nn.SoftAssignmentPooling(4, 5, temperature=0.2)
    items, _, lengths = make_sequences(3, 6, 4, 5, torch.float32)
    assert torch.equal(layer(items, lengths), soft_assignment_pool(items, layer.categories, lengths, temperature=0.2))
    assert layer.categories.abs().max() <= 5**-0.5
    assert "categories=4, dim=5" in repr(layer)


ITEMS, CATEGORIES, LENGTHS = torch.zeros(2, 3, 5), torch.zeros(4, 5), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"items: expected a tensor \[B, L, d\], found list", {"items": [1.0]}),
        (TypeError, r"items: expected a dtype among .*found int64", {"items": ITEMS.long()}),
        (ValueError, r"items: expected shape \[B, L, d\], found float32 \[3, 5\]", {"items": ITEMS[0]}),
        (TypeError, r"categories: expected dtype torch.float32, as items", {"categories": CATEGORIES.double()}),
        (ValueError, r"categories: expected shape \[4, 5\]", {"categories": torch.zeros(4, 6)}),
        (ValueError, r"categories: expected at least one category", {"categories": torch.zeros(0, 5)}),
        (ValueError, r"categories: expected device cpu", {"categories": CATEGORIES.to("meta")}),
        (ValueError, r"lengths: expected shape \[2\]", {"lengths": torch.tensor([1])}),
        (TypeError, r"lengths: expected a dtype among int64, int32", {"lengths": LENGTHS.float()}),
        (ValueError, r"lengths\[1\]: expected a value in \[0, 4\), found 7", {"lengths": torch.tensor([1, 7])}),
        (ValueError, r"lengths\[0\]: expected a value in \[0, 4\), found -1", {"lengths": torch.tensor([-1, 0])}),
        (ValueError, r"lengths, offsets: expected one", {"items": ITEMS[0], "offsets": torch.tensor([0, 3])}),
        (ValueError, r"temperature: expected a positive finite number, found 0", {"temperature": 0.0}),
        (ValueError, r"temperature: .* found nan", {"temperature": math.nan}),
        (ValueError, r"temperature: .* found -0.5", {"temperature": torch.tensor(-0.5)}),
        (ValueError, r"temperature: expected a number or a 0-d tensor", {"temperature": torch.ones(1)}),
        (TypeError, r"temperature: expected a number", {"temperature": "warm"}),
        (ValueError, r"views: expected shape \[1, 2, 3\]", {"views": torch.ones(1, 2, 4, dtype=torch.bool)}),
        (ValueError, r"views: expected 1 to 8 views, found 9", {"views": torch.ones(9, 2, 3, dtype=torch.bool)}),
        (TypeError, r"views: expected a dtype among bool", {"views": torch.ones(1, 2, 3)}),
        (ValueError, r"backend: expected one of auto, reference", {"backend": "gpu"}),
        pytest.param(
            ValueError, r"backend: soft_assignment_pool cannot run on 'cuda': ", {"backend": "cuda"}, marks=refuses_cuda
        ),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        soft_assignment_pool(**{"items": ITEMS, "categories": CATEGORIES, "lengths": LENGTHS, **arguments})


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 2, 6], r"offsets: expected rising values, found offsets\[1\] = 3, then 2"),
        ([0, 3], r"offsets: expected values from 0 to 6"),
        ([1, 6], r"offsets: expected values from 0 to 6"),
        ([], r"offsets: expected shape \[B \+ 1\]"),
    ],
)
def test_bad_offsets(offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_assignment_pool(torch.zeros(6, 5), CATEGORIES, offsets=torch.tensor(offsets, dtype=torch.int64))
