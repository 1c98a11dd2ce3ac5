"""The compiled soft_assignment_pool: error budget at every tile edge and ISA level, determinism, registration."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checking import (
    assert_within_budget,
    make_sequences,
    needs_native,
    pool_in_long_double,
    rounding,
    to_jagged,
    with_gradients,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmi_fast import nn, reference
from cmi_fast.functional import soft_assignment_pool
from cmi_fast.ops.checks import FLOATING

pytestmark = needs_native

# B, L, m, d: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, id="odd"),
    pytest.param(3, 16, 8, 64, id="aligned"),
    pytest.param(2, 33, 9, 65, id="one-past-a-tile"),
    pytest.param(1, 1, 1, 1, id="smallest"),
    pytest.param(4, 40, 64, 20, id="many-categories"),
    pytest.param(70, 30, 8, 16, id="several-parts"),
]


def test_second_derivative_of_the_kernel_is_refused() -> None:
    items, categories, lengths = make_sequences(2, 3, 3, 4)
    pooled = soft_assignment_pool(items.requires_grad_(), categories, lengths, backend="cpu")
    (gradient,) = torch.autograd.grad(pooled.square().sum(), items, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("view_count", [0, 3], ids=["one-view", "views"])
@pytest.mark.parametrize(("batch", "length", "m", "d"), SHAPES)
def test_error_budget(
    isa_level: str, batch: int, length: int, m: int, d: int, view_count: int, jagged: bool, dtype: torch.dtype
) -> None:
    items, categories, lengths = make_sequences(batch, length, m, d, dtype)
    views = torch.rand(view_count, batch, length) < 0.4 if view_count else None  # some rows are in no view
    # What lies beyond a length is never read, and its gradient is zero.
    beyond = torch.arange(length) >= lengths[:, None]
    items[beyond] = math.nan
    shape = (batch, m, d) if views is None else (view_count, batch, m, d)
    cotangent = torch.randn(shape, dtype=dtype)
    truth = None
    if dtype == torch.float64:
        member = torch.ones(1, batch, length, dtype=torch.bool) if views is None else views
        pooled, rows_grad, categories_grad = pool_in_long_double(
            items[~beyond], categories, (~beyond).nonzero()[:, 0], member[:, ~beyond], cotangent.view(-1, batch, m, d)
        )
        items_grad = np.zeros(items.shape, np.longdouble)
        items_grad[~beyond.numpy()] = rows_grad
        truth = [pooled.reshape(shape), rows_grad if jagged else items_grad, categories_grad]
    offsets = None
    if jagged:
        items, offsets = to_jagged(items, lengths)
        lengths, views = None, None if views is None else views[:, ~beyond]

    def ours(items: Tensor, categories: Tensor) -> Tensor:
        return soft_assignment_pool(items, categories, lengths, offsets=offsets, views=views, backend="cpu")

    def exact(items: Tensor, categories: Tensor) -> Tensor:
        return reference.soft_assignment_pool(items, categories, lengths, offsets, views=views)

    assert_within_budget(ours, exact, [items, categories], cotangent, rounding(dtype), truth)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("view_count", [1, 2, 8])
def test_views_of_long_sequences(isa_level: str, view_count: int) -> None:
    """Longer than what is ordered by view at a time; up to every number of views, one of them empty."""
    items, categories, _ = make_sequences(2, 600, 5, 9)
    views = torch.rand(view_count, 2, 600) < 0.5
    views[-1] = False
    assert_within_budget(
        lambda v, g: soft_assignment_pool(v, g, views=views, backend="cpu"),
        lambda v, g: reference.soft_assignment_pool(v, g, views=views),
        (items, categories),
        torch.randn(view_count, 2, 5, 9, dtype=torch.float64),
        rounding(torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_temperature_gradient(isa_level: str, dtype: torch.dtype) -> None:
    items, categories, _ = make_sequences(70, 30, 8, 16, dtype)
    cotangent = torch.randn(70, 8, 16, dtype=dtype)
    temperature = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    soft_assignment_pool(items, categories, temperature=temperature, backend="cpu").backward(cotangent)
    # -sum_ik ds_ik s_ik / t (see the kernel): terms of both signs, so the error is measured against their magnitudes.
    unit = F.normalize(items.double(), dim=-1)
    scores = unit @ F.normalize(categories.double(), dim=-1).T
    p = torch.softmax(scores / 0.1, -1)
    a = unit @ cotangent.double().transpose(1, 2)
    terms = p * (a - (p * a).sum(-1, keepdim=True)) * scores / 0.1**2
    assert temperature.grad is not None
    assert abs(temperature.grad + terms.sum()) <= torch.finfo(dtype).eps * terms.abs().sum()


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("with_views", [False, True], ids=["one-view", "views"])
def test_opcheck(jagged: bool, with_views: bool) -> None:
    items, categories, lengths = make_sequences(3, 6, 4, 5, torch.float32)
    index = (lengths, None)
    if jagged:
        items, offsets = to_jagged(items, lengths)
        index = (None, offsets)
    views = torch.rand(2, *items.shape[:-1]) < 0.5 if with_views else None
    temperature = torch.tensor(0.2, requires_grad=True)
    args = (items.requires_grad_(), categories.requires_grad_(), *index, views, 1.0, temperature)
    torch.library.opcheck(torch.ops.cmi_fast.soft_assignment_pool.default, args)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in args]
    torch.library.opcheck(
        torch.ops.cmi_fast.soft_assignment_pool_backward.default,
        (torch.randn(2, 3, 4, 5) if with_views else torch.randn(3, 4, 5), *detached, True, True, True),
    )


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_opcheck_of_some_gradients(wanted: tuple[bool, bool, bool]) -> None:
    items, categories, lengths = make_sequences(3, 6, 4, 5, torch.bfloat16)
    args = (items, categories, lengths, None, None, 1.0, torch.tensor(0.2))
    cotangent = torch.randn(3, 4, 5).bfloat16()
    torch.library.opcheck(torch.ops.cmi_fast.soft_assignment_pool_backward.default, (cotangent, *args, *wanted))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.03, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_temperatures(isa_level: str, temperature: float, dtype: torch.dtype) -> None:
    items, categories, lengths = make_sequences(3, 20, 8, 16, dtype)
    ours = soft_assignment_pool(items, categories, lengths, temperature=temperature, backend="cpu")
    exact = reference.soft_assignment_pool(items.double(), categories.double(), lengths, None, temperature)
    # The cosine's own rounding, divided by the temperature, moves the assignment.
    tolerance = 20 * torch.finfo(dtype).eps / temperature + 1e-5 * (dtype == torch.float32)
    assert (ours.double() - exact).abs().max() <= max(tolerance, 1e-12)


def test_a_nan_with_any_payload_stays_nan(isa_level: str) -> None:
    categories = torch.randn(4, 5)
    categories.view(torch.int32)[2, 1] = 0x7FC00001
    assert soft_assignment_pool(torch.randn(1, 3, 5), categories, backend="cpu").isnan().all()
    wide = torch.randn(4, 5, dtype=torch.float64)
    wide.view(torch.int64)[2, 1] = 0x7FF8000000000001
    assert soft_assignment_pool(torch.randn(1, 3, 5, dtype=torch.float64), wide, backend="cpu").isnan().all()


def test_a_gradient_too_large_for_the_caches(isa_level: str, poisoned: None) -> None:
    items, categories, lengths = make_sequences(200, 100, 4, 64, torch.float32)
    assert items.nbytes > 4 * 2**20
    assert_within_budget(
        lambda v, g: soft_assignment_pool(v, g, lengths, backend="cpu"),
        lambda v, g: reference.soft_assignment_pool(v, g, lengths, None, 0.1),
        (items, categories),
        torch.randn(200, 4, 64),
        tolerance=1e-6,
    )


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    items, categories, lengths = make_sequences(400, 50, 8, 64, torch.float32)
    views = torch.rand(2, 400, 50) < 0.5
    cotangent = torch.randn(2, 400, 8, 64)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(
                with_gradients(
                    lambda v, g: soft_assignment_pool(v, g, lengths, views=views, backend="cpu"),
                    (items, categories),
                    cotangent,
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_no_gradient_is_computed_that_nobody_asked_for(wanted: tuple[bool, bool, bool]) -> None:
    items, categories, lengths = make_sequences(2, 3, 4, 5)
    inputs = items, categories, torch.tensor(0.2, dtype=torch.float64)
    items, categories, temperature = (x.requires_grad_(want) for x, want in zip(inputs, wanted, strict=True))
    asked: list[tuple[bool, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.cmi_fast.soft_assignment_pool_backward.default:
                asked.append(args[-3:])
            return function(*args, **(kwargs or {}))

    pooled = soft_assignment_pool(items, categories, lengths, temperature=temperature, backend="cpu")
    with Recorder():
        pooled.square().sum().backward()
    assert asked == [wanted]


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_backward_returns_only_what_is_wanted(wanted: tuple[bool, bool, bool]) -> None:
    items, categories, lengths = make_sequences(2, 3, 4, 5)
    args = (torch.randn(2, 4, 5, dtype=torch.float64), items, categories, lengths, None, None, 0.1, None)
    everything = torch.ops.cmi_fast.soft_assignment_pool_backward(*args, True, True, True)
    for gradient, full, want in zip(
        torch.ops.cmi_fast.soft_assignment_pool_backward(*args, *wanted), everything, wanted, strict=True
    ):
        assert torch.equal(gradient, full) if want else gradient.numel() == 0


def test_transforms_take_the_reference() -> None:
    items, categories, _ = make_sequences(2, 3, 4, 5)
    direction = torch.randn_like(items)
    for pool in (soft_assignment_pool, functools.partial(soft_assignment_pool, backend="reference")):
        _, derivative = torch.func.jvp(lambda v, pool=pool: pool(v, categories), (items,), (direction,))
        assert derivative.abs().max() > 0.1
    with pytest.raises(ValueError, match=r"no rule for torch\.func"):
        torch.func.jvp(lambda v: soft_assignment_pool(v, categories, backend="cpu"), (items,), (direction,))


@pytest.mark.parametrize("offsets", [[], [0, 3, 2, 6], [0, 7], [1, 6]])
def test_the_operator_itself_never_reads_out_of_bounds(offsets: list[int]) -> None:
    index = torch.tensor(offsets, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="offsets must"):
        torch.ops.cmi_fast.soft_assignment_pool(torch.zeros(6, 5), torch.zeros(4, 5), None, index, None, 0.1, None)


def test_a_compiled_graph_checks_values_in_the_operator() -> None:
    compiled = torch.compile(nn.SoftAssignmentPooling(4, 5, backend="cpu"), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"lengths\[1\] = 9 is outside \[0, 6\]"):
        compiled(torch.randn(2, 6, 5), torch.tensor([1, 9]))
