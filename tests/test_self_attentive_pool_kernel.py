"""The compiled self_attentive_pool: error budget at every tile edge and ISA level, determinism, registration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import assert_within_budget, needs_native, rounding, to_jagged, with_gradients
from test_self_attentive_pool import make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmi_fast.functional import self_attentive_pool
from cmi_fast.ops.checks import FLOATING

pytestmark = needs_native


def tolerance(dtype: torch.dtype) -> float:
    """In float64 the reference, which stands for the truth, is as inexact as what is tested: sums of thousands."""
    return 64 * torch.finfo(dtype).eps if dtype == torch.float64 else rounding(dtype)


# B, L, d, h, K: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, 2, id="odd"),
    pytest.param(3, 16, 64, 256, 4, id="aligned"),
    pytest.param(3, 67, 17, 65, 9, id="one-past-a-tile-and-a-block"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(3, 300, 4, 8, 17, id="long"),
    pytest.param(300, 6, 8, 16, 3, id="several-parts"),
]
NAMES = ("items", "weight", "queries", "bias", "positions")


def pooled(lengths: Tensor | None, offsets: Tensor | None, backend: str = "cpu") -> Any:
    def pool(*inputs: Tensor) -> Tensor:
        return self_attentive_pool(
            **dict(zip(NAMES, inputs, strict=False)), lengths=lengths, offsets=offsets, backend=backend
        )

    return pool


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("inputs", [3, 5], ids=["plain", "bias-and-positions"])
@pytest.mark.parametrize(("batch", "length", "d", "h", "k"), SHAPES)
def test_error_budget(
    isa_level: str, batch: int, length: int, d: int, h: int, k: int, inputs: int, jagged: bool, dtype: torch.dtype
) -> None:
    made = make(batch, length, d, h, k, dtype)
    lengths, offsets = made["lengths"], None
    lengths[0] = length  # at least one item, jagged ones too
    made["queries"] /= h**0.5
    # What lies beyond a length is never read, and its gradient is zero.
    made["items"][torch.arange(length) >= lengths[:, None]] = math.nan
    if jagged:
        made["items"], offsets = to_jagged(made["items"], lengths)
        lengths = None
    assert_within_budget(
        pooled(lengths, offsets),
        pooled(lengths, offsets, "reference"),
        [made[name] for name in NAMES[:inputs]],
        torch.randn(batch, k, d, dtype=dtype),
        tolerance(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_scores_far_apart(isa_level: str, dtype: torch.dtype) -> None:
    """The hidden layer at its ends, and an attention on one item alone."""
    made = make(3, 9, 4, 6, 3, dtype)
    made["items"] *= 100
    made["queries"] *= 100
    interests = self_attentive_pool(**made, backend="cpu")
    torch.testing.assert_close(interests, self_attentive_pool(**made, backend="reference"))


def test_a_nan_stays_in_its_sequence(isa_level: str) -> None:
    made = make(9, 4, 5, 6, 3, torch.float32)
    made["lengths"][:] = 4
    made["items"][2, 1, 3] = math.nan
    bad = self_attentive_pool(**made, backend="cpu").isnan().flatten(1).any(1)
    assert bad.tolist() == [b == 2 for b in range(9)]


def test_second_derivatives_are_the_references() -> None:
    made = make(2, 3, 3, 2, 2)
    lengths, inputs = made["lengths"], [made[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradgradcheck(pooled(lengths, None, "reference"), inputs)
    (gradient,) = torch.autograd.grad(pooled(lengths, None)(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    made = make(300, 40, 24, 70, 5, torch.float32)
    inputs, cotangent = [made[name] for name in NAMES], torch.randn(300, 5, 24)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(pooled(made["lengths"], None), inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_opcheck(jagged: bool) -> None:
    made = make(3, 6, 4, 5, 2, torch.float32)
    items, offsets = made["items"], None  # without padding: the attention of rows beyond a length is never written
    if jagged:
        items, offsets = to_jagged(items, made["lengths"])
    leaves = [x.requires_grad_() for x in (items, *(made[name] for name in NAMES[1:]))]
    torch.library.opcheck(torch.ops.cmi_fast.self_attentive_pool.default, (*leaves, None, offsets))
    detached = [x.detach() for x in leaves]
    result, attention = torch.ops.cmi_fast.self_attentive_pool(*detached, None, offsets)
    arguments = (torch.randn_like(result), attention, *detached, None, offsets, *(True,) * 5)
    torch.library.opcheck(torch.ops.cmi_fast.self_attentive_pool_backward.default, arguments)


def test_unwanted_gradients_are_as_their_fakes() -> None:
    items, *parameters = (
        torch.randn(3, 6, 4).bfloat16(),
        torch.randn(5, 4),
        torch.randn(2, 5),
        torch.randn(5),
        torch.randn(6, 4),
    )
    result, attention = torch.ops.cmi_fast.self_attentive_pool(items, *parameters, None, None)
    wanted = (True, False, True, False, True)
    arguments = (torch.randn_like(result), attention, items, *parameters, None, None, *wanted)
    torch.library.opcheck(torch.ops.cmi_fast.self_attentive_pool_backward.default, arguments)


@pytest.mark.parametrize("wanted", range(5), ids=NAMES)
def test_no_gradient_is_computed_that_nobody_asked_for(wanted: int) -> None:
    made = make(3, 4, 4, 5, 2)

    inputs = [made[name] for name in NAMES]
    pool = pooled(made["lengths"], None)
    everything = with_gradients(pool, inputs, torch.ones(3, 2, 4))[1:]
    inputs[wanted].requires_grad_()
    asked: list[tuple[bool, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.cmi_fast.self_attentive_pool_backward.default:
                asked.append(args[-5:])
                sizes = [x.numel() * want for x, want in zip(everything, args[-5:], strict=True)]
                assert [x.numel() for x in result] == sizes
            return result

    result = pool(*inputs)
    with Recorder():
        result.sum().backward()
    assert asked == [tuple(index == wanted for index in range(5))]
    assert torch.equal(inputs[wanted].grad, everything[wanted])


def test_non_contiguous_arguments() -> None:
    made = make(3, 4, 4, 5, 2)
    inputs = [made[name] for name in NAMES]
    strided = [
        inputs[0].transpose(0, 1).contiguous().transpose(0, 1),
        *(x.repeat_interleave(2, 0)[::2] for x in inputs[1:]),
    ]
    cotangent = torch.randn(3, 1, 4, dtype=torch.float64).expand(3, 2, 4)
    pool = pooled(made["lengths"], None)
    for ours, expected in zip(
        with_gradients(pool, strided, cotangent), with_gradients(pool, inputs, cotangent.contiguous()), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(precision: torch.dtype) -> None:
    made = make(3, 5, 4, 6, 2, torch.float32)
    expected = self_attentive_pool(**made)
    with torch.autocast("cpu", precision):
        ours = self_attentive_pool(**made)
    assert ours.dtype == precision
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.05)


def test_compiles_as_one_graph() -> None:
    made = make(3, 5, 4, 6, 2, torch.float32)
    inputs, pool = [made[name] for name in NAMES], pooled(made["lengths"], None)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(
        with_gradients(compiled, inputs, torch.ones(3, 2, 4)),
        with_gradients(pool, inputs, torch.ones(3, 2, 4)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("offsets", [[], [0, 3, 2, 6], [0, 7], [1, 6]])
def test_the_operator_itself_never_reads_out_of_bounds(offsets: list[int]) -> None:
    made = make(1, 6, 4, 5, 2)
    index = torch.tensor(offsets, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="offsets must"):
        torch.ops.cmi_fast.self_attentive_pool(
            made["items"][0], made["weight"], made["queries"], None, None, None, index
        )


def test_the_operator_itself_checks_shapes() -> None:
    inputs = [torch.zeros(shape) for shape in ((2, 3, 4), (5, 4), (2, 5), (5,), (3, 4))]
    for argument, bad in enumerate([torch.zeros(shape) for shape in ((2, 4), (5, 3), (2, 4), (4,), (2, 4))]):
        arguments = [bad if i == argument else x for i, x in enumerate(inputs)]
        with pytest.raises(RuntimeError, match=r"must be|may be longer"):
            torch.ops.cmi_fast.self_attentive_pool(*arguments, None, None)
