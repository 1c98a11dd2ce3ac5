"""The Triton kernels, in Triton's interpreter: error budget at tile edges, half types, registration, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from checking import assert_within_budget, make_sequences, needs_native, needs_triton, to_jagged, with_gradients
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cmi_fast import reference, triton
from cmi_fast.functional import (
    gru,
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    soft_assignment_pool,
)
from cmi_fast.ops.backend import choose_backend

pytestmark = [needs_triton, pytest.mark.usefixtures("poisoned")]

HALF = [torch.bfloat16, torch.float16]
# Before the last rounding gradients are within 1e-3 of float64, which the rounding to bfloat16 brings to 2.5e-3.
HALF_TOLERANCE = 2.5e-3


def assert_halves_within(
    function: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor], result: float
) -> None:
    """The result within ``result``, gradients within HALF_TOLERANCE of float64 on the same rounded inputs, in norm."""
    cotangent = torch.randn(function(*inputs).shape).to(inputs[0].dtype)
    ours = with_gradients(function, inputs, cotangent)
    truths = with_gradients(exact, [x.double() for x in inputs], cotangent.double())
    for our, true, tolerance in zip(ours, truths, [result] + [HALF_TOLERANCE] * len(inputs), strict=True):
        assert (our.double() - true).norm() <= tolerance * true.norm()


# N, d, and rows of a tile: anchors and columns. The rule's own for few rows, and those for many.
NT_XENT = [
    pytest.param(1, 5, None, id="one-pair"),
    pytest.param(15, 17, None, id="below-a-tile"),
    pytest.param(16, 64, None, id="one-tile"),
    pytest.param(17, 65, None, id="above-a-tile-and-a-chunk"),
    pytest.param(33, 130, None, id="three-chunks"),
    pytest.param(70, 20, (64, 64), id="tiles-of-many-rows"),
    pytest.param(130, 16, (128, 64), id="tiles-of-very-many-rows"),
]


def large_tiles(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int] | None) -> None:
    if tile is not None:
        from cmi_fast.triton import nt_xent_loss as kernels

        monkeypatch.setattr(kernels, "_tiles_and_warps", lambda *_: [((*tile, 64), 4)])


@pytest.mark.parametrize("temperature", [0.1, 0.005], ids=["shared-shift", "running-maximum"])
@pytest.mark.parametrize(("negatives", "direction"), [("all", "both"), ("cross_view", "first")])
@pytest.mark.parametrize(("pairs", "d", "tile"), NT_XENT)
def test_nt_xent_loss(
    monkeypatch: pytest.MonkeyPatch,
    pairs: int,
    d: int,
    tile: tuple[int, int] | None,
    negatives: str,
    direction: str,
    temperature: float,
) -> None:
    large_tiles(monkeypatch, tile)
    first = torch.randn(pairs, d)
    options = {"negatives": negatives, "direction": direction, "reduction": "none", "temperature": temperature}
    ours = partial(nt_xent_loss, **options, backend="triton")
    exact = partial(reference.nt_xent_loss, **options)
    cotangent = torch.randn(2 * pairs if direction == "both" else pairs)
    # A cosine's rounding, divided by the temperature, is an error of the exponent, so relative in every gradient.
    tolerance = 2 * torch.finfo(torch.float32).eps / temperature
    assert_within_budget(ours, exact, (first, first + torch.randn(pairs, d)), cotangent, tolerance)


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
def test_nt_xent_loss_in_half(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, normalize: bool) -> None:
    large_tiles(monkeypatch, (128, 64))
    first = torch.randn(100, 80)
    inputs = [x.to(dtype) for x in (first, first + torch.randn(100, 80))]
    options = {"normalize": normalize, "temperature": 0.1 if normalize else 4.0}
    ours, exact = partial(nt_xent_loss, **options, backend="triton"), partial(reference.nt_xent_loss, **options)
    assert_halves_within(ours, exact, inputs, 1e-5)


# B, L, m, d, V. A block has 16 items; dimensions come in chunks of up to 64, of fewer with many sums.
POOLINGS = [
    pytest.param(2, 5, 3, 7, 0, id="odd"),
    pytest.param(3, 16, 8, 64, 3, id="aligned-three-views"),
    pytest.param(2, 17, 17, 65, 0, id="one-past-a-block-and-a-chunk"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(2, 20, 64, 40, 2, id="many-categories"),
    pytest.param(2, 33, 9, 20, 8, id="eight-views"),
]


def make_pooling(
    batch: int, length: int, m: int, d: int, view_count: int, jagged: bool, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    items, categories, lengths = make_sequences(batch, length, m, d, dtype)
    items[torch.arange(length) >= lengths[:, None]] = torch.nan  # never read
    views = torch.rand(view_count, batch, length) < 0.5 if view_count else None
    if not jagged:
        return items, categories, {"lengths": lengths, "views": views}
    inside = torch.arange(length) < lengths[:, None]
    rows, offsets = to_jagged(items, lengths)
    return rows, categories, {"offsets": offsets, "views": None if views is None else views[:, inside]}


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize(("batch", "length", "m", "d", "view_count"), POOLINGS)
def test_soft_assignment_pool(batch: int, length: int, m: int, d: int, view_count: int, jagged: bool) -> None:
    items, categories, options = make_pooling(batch, length, m, d, view_count, jagged)
    ours = partial(soft_assignment_pool, **options, backend="triton")
    cotangent = torch.randn(*([view_count] if view_count else []), batch, m, d)
    tolerance = 8 * torch.finfo(torch.float32).eps  # a few roundings of sums whose order differs
    exact = partial(reference.soft_assignment_pool, **options)
    assert_within_budget(ours, exact, [items, categories], cotangent, tolerance)


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_soft_assignment_pool_in_half(dtype: torch.dtype) -> None:
    items, categories, options = make_pooling(4, 20, 8, 24, 2, False, dtype)
    ours = partial(soft_assignment_pool, **options, backend="triton")
    exact = partial(reference.soft_assignment_pool, **options)
    assert_halves_within(ours, exact, [items, categories], HALF_TOLERANCE)


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize(("batch", "length", "m", "d", "view_count"), POOLINGS)
def test_item_soft_assignment_pool(batch: int, length: int, m: int, d: int, view_count: int, jagged: bool) -> None:
    items, categories, options = make_pooling(batch, length, m, d, view_count, jagged)
    table = torch.randn(40, d)
    ids = torch.randint(0, 40, items.shape[:-1])
    if not jagged:
        ids[torch.arange(length) >= options["lengths"][:, None]] = 10**9  # never read
    ours = partial(item_soft_assignment_pool, ids, **options, backend="triton")
    exact = partial(reference.item_soft_assignment_pool, ids, **options)
    cotangent = torch.randn(*([view_count] if view_count else []), batch, m, d)
    assert_within_budget(ours, exact, [table, categories], cotangent, 8 * torch.finfo(torch.float32).eps)


# B, m, C, d. A block has 32 interests (rows of float32), a tile 16 candidates.
SOFTMAXES = [
    pytest.param(1, 1, 1, 1, id="smallest"),
    pytest.param(5, 3, 17, 7, id="odd"),
    pytest.param(8, 8, 32, 64, id="aligned"),
    pytest.param(9, 9, 33, 65, id="one-past-a-tile-and-a-chunk"),
    pytest.param(3, 40, 20, 20, id="many-interests"),
    pytest.param(33, 1, 16, 5, id="one-interest"),
]


def make_softmax(
    users: int, m: int, count: int, d: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Callable[..., Callable[..., Tensor]]]:
    """Interests, candidates, general, bias; and what makes a loss of them alone from an implementation."""
    targets = torch.randint(0, count, (users,))
    exclude = torch.rand(users, count) < 0.2
    exclude[torch.arange(users), targets] = False
    masks = {"exclude": exclude, "candidate_ids": torch.randint(0, count, (count,)), "temperature": 0.3}
    inputs = [torch.randn(shape).to(dtype) for shape in ((users, m, d), (count, d), (users, d), (count,))]

    def of(function: Callable[..., Tensor], **options: str) -> Callable[..., Tensor]:
        def loss(interests: Tensor, candidates: Tensor, general: Tensor, bias: Tensor) -> Tensor:
            arguments = {"candidate_bias": bias, **masks, **options}
            return function(interests, candidates, targets, general, reduction="none", **arguments)

        return loss

    return inputs, of


@pytest.mark.parametrize(("users", "m", "count", "d"), SOFTMAXES)
def test_interest_softmax_loss(users: int, m: int, count: int, d: int) -> None:
    inputs, of = make_softmax(users, m, count, d)
    ours, exact = of(interest_softmax_loss, backend="triton"), of(reference.interest_softmax_loss)
    # Logits reach 30 or so, and their rounding is an error of the exponent.
    assert_within_budget(ours, exact, inputs, torch.randn(users), 32 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_interest_softmax_loss_in_half(dtype: torch.dtype) -> None:
    inputs, of = make_softmax(20, 8, 70, 24, dtype)
    assert_halves_within(of(interest_softmax_loss, backend="triton"), of(reference.interest_softmax_loss), inputs, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_temperature_gradients(dtype: torch.dtype) -> None:
    """As a tensor, which float64's gradcheck in the operators' own tests covers for that type alone."""
    first, second = torch.randn(2, 9, 12).to(dtype)
    items, categories, lengths = make_sequences(3, 20, 4, 12, dtype)
    inputs, of = make_softmax(5, 3, 17, 7, dtype)

    def softmax(temperature: Tensor, backend: str) -> Tensor:
        def function(*inputs: Tensor, **options: Any) -> Tensor:
            return interest_softmax_loss(*inputs, **{**options, "temperature": temperature}, backend=backend)

        return of(function)(*[x.double() if backend == "reference" else x for x in inputs])

    def contrast(temperature: Tensor, backend: str) -> Tensor:
        views = [x.double() if backend == "reference" else x for x in (first, second)]
        return nt_xent_loss(*views, temperature=temperature, reduction="none", backend=backend)

    def pool(temperature: Tensor, backend: str) -> Tensor:
        rows = [x.double() if backend == "reference" else x for x in (items, categories)]
        return soft_assignment_pool(*rows, lengths, temperature=temperature, backend=backend)

    for function in (softmax, contrast, pool):
        results = []
        for backend, like in (("triton", torch.float32), ("reference", torch.float64)):
            temperature = torch.tensor(0.3, dtype=like, requires_grad=True)
            output = function(temperature, backend)
            torch.manual_seed(1)
            cotangent = torch.randn(output.shape, dtype=torch.float64).to(dtype).to(output.dtype)
            results.append(torch.autograd.grad(output, temperature, cotangent)[0])
        torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-5)


def test_opcheck() -> None:
    temperature = torch.tensor(0.2, requires_grad=True)
    items, categories, lengths = make_sequences(2, 6, 4, 5, torch.float32)
    first, second = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    views = torch.rand(2, 2, 6) < 0.5
    ids, table = torch.randint(0, 7, (2, 6)), torch.randn(7, 5, requires_grad=True)
    pooling = [categories.requires_grad_(), lengths, None, views, 1.0, temperature]
    interests, candidates, general, bias = (x.requires_grad_() for x in make_softmax(3, 2, 5, 4)[0])
    softmax = [interests, candidates, torch.tensor([0, 4, 2]), general, bias, None, torch.arange(5), 1.0]
    calls = {
        "nt_xent_loss": [first, second, 1.0, temperature, "all", "both", True, "ieee"],
        "soft_assignment_pool": [items.requires_grad_(), *pooling],
        "item_soft_assignment_pool": [ids, table, *pooling],
        "interest_softmax_loss": [*softmax, temperature, "ieee"],
    }
    for name, arguments in calls.items():
        operator = getattr(torch.ops.cmi_fast_triton, name).default
        gradient = getattr(torch.ops.cmi_fast_triton, f"{name}_backward").default
        torch.library.opcheck(operator, arguments)
        detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        output = operator(*detached)
        result, *saved = output if isinstance(output, tuple) else (output,)
        count = len(gradient._schema.arguments) - 1 - len(saved) - len(arguments)
        for wanted in ([True] * count, [False] * count):
            torch.library.opcheck(gradient, (torch.randn_like(result), *saved, *detached, *wanted))


@needs_native
@pytest.mark.parametrize("operator", ["nt_xent_loss", "soft_assignment_pool", "item_soft_assignment_pool"])
@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_schemas_are_the_compiled_operators(operator: str, suffix: str) -> None:
    def types(library: object) -> list[str]:
        schema = getattr(library, f"{operator}{suffix}").default._schema
        values = *schema.arguments, *schema.returns
        return [str(value.type) for value in values if value.name != "fp32_precision"]  # which a CPU has no use for

    assert types(torch.ops.cmi_fast_triton) == types(torch.ops.cmi_fast)


def test_only_wanted_gradients_are_computed() -> None:
    first, second = torch.randn(2, 20, 6)
    options = (first, second, 0.1, None, "all", "both", True, "ieee")
    losses, log_sum = torch.ops.cmi_fast_triton.nt_xent_loss(*options)
    arguments = (torch.randn_like(losses), log_sum, *options)
    everything = torch.ops.cmi_fast_triton.nt_xent_loss_backward(*arguments, True, True, True)
    for i in range(3):
        wanted = [i == j for j in range(3)]
        results = torch.ops.cmi_fast_triton.nt_xent_loss_backward(*arguments, *wanted)
        for result, full, want in zip(results, everything, wanted, strict=True):
            assert torch.equal(result, full) if want else result.numel() == 0


def test_second_derivative_is_refused() -> None:
    first, second = torch.randn(2, 5, 4)
    loss = nt_xent_loss(first.requires_grad_(), second, backend="triton")
    (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_values_that_nobody_has_checked_lead_to_nan() -> None:
    """On CUDA values are not looked at: a bad one must not lead out of memory, nor pass unseen."""
    items, table, categories = torch.randn(2, 3, 5), torch.randn(7, 5), torch.randn(4, 5)
    operators = torch.ops.cmi_fast_triton
    pooled = operators.item_soft_assignment_pool(
        torch.tensor([[0, 2**40, 1], [1, 2, 3]]), table, categories, None, None, None, 0.1, None
    )
    assert pooled.isnan().flatten(1).all(1).tolist() == [True, False]
    pooled = operators.soft_assignment_pool(items, categories, torch.tensor([3, 2**40]), None, None, 0.1, None)
    torch.testing.assert_close(pooled, soft_assignment_pool(items, categories))
    losses, _ = operators.interest_softmax_loss(
        torch.randn(2, 3, 5), table, torch.tensor([2**40, 1]), None, None, None, None, 0.1, None, "ieee"
    )
    assert losses.isnan().tolist() == [True, False]


def test_tensors_on_cuda_take_triton_once_it_has_passed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_interpreted", False)
    with FakeTensorMode():  # without a GPU there is no other tensor on one
        for tested_on, automatic in (((), "reference"), (("a GPU",), "triton")):
            monkeypatch.setattr(triton, "TESTED_ON", tested_on)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows = torch.empty(2, device="cuda", dtype=dtype)
                assert choose_backend("auto", "nt_xent_loss", rows) == automatic
                assert choose_backend("triton", "nt_xent_loss", rows) == "triton"
        assert choose_backend("auto", "gru", rows) == "reference"  # it has no Triton kernel
        wide = torch.empty(2, device="cuda", dtype=torch.float64)
        assert choose_backend("auto", "nt_xent_loss", wide) == "reference"
        with pytest.raises(ValueError, match=r"cannot run on 'triton': it has no kernel for torch\.float64"):
            choose_backend("triton", "nt_xent_loss", wide)
        with pytest.raises(ValueError, match="cannot run on 'cpu': the tensors are on cuda:0"):
            choose_backend("cpu", "nt_xent_loss", wide, cpu=(torch.float64,))


@pytest.mark.parametrize(
    ("environment", "setup", "message"),
    [
        ({}, "", "the tensors are on cpu; move them to a CUDA device, or set TRITON_INTERPRET=1"),
        ({"TRITON_INTERPRET": "1"}, "x = x.to('meta')", "the tensors are on meta"),
        ({}, "from cmi_fast import triton; triton._installed = False", "Triton is not installed"),
    ],
)
def test_says_why_it_cannot_run(environment: dict[str, str], setup: str, message: str) -> None:
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = f"import torch\nfrom cmi_fast.functional import nt_xent_loss\nx = torch.ones(2, 3)\n{setup}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}nt_xent_loss(x, x, backend='triton')"],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"ValueError: backend: nt_xent_loss cannot run on 'triton': {message}" in done.stderr


def test_an_operator_without_a_kernel_says_so() -> None:
    items, weight = torch.randn(2, 3, 4), torch.randn(12, 4)
    with pytest.raises(ValueError, match="gru has no 'triton' kernel"):
        gru(items, weight, weight, backend="triton")


def test_transforms_are_refused() -> None:
    first, second = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=r"no rule for torch\.func"):
        torch.func.jvp(lambda x: nt_xent_loss(x, second, backend="triton"), (first,), (second,))
