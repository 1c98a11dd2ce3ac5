"""The compiled gru: error budget at every tile edge and ISA level, determinism, registration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import assert_within_budget, needs_native, rounding, to_jagged, with_gradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmi_fast import reference
from cmi_fast.functional import gru
from cmi_fast.ops.checks import FLOATING

pytestmark = needs_native

# B, L, d, hidden: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, id="odd"),
    pytest.param(8, 16, 64, 64, id="aligned"),
    pytest.param(9, 4, 65, 33, id="one-past-a-tile"),
    pytest.param(1, 1, 1, 1, id="smallest"),
    pytest.param(3, 130, 4, 20, id="long"),
    pytest.param(600, 6, 8, 16, id="several-blocks"),
]
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def make(batch: int, length: int, d: int, hidden: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Items [B, L, d], the parameters as torch.nn.GRU draws them, and lengths [B]."""
    bound = hidden**-0.5
    shapes = [(3 * hidden, d), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)]
    parameters = [torch.empty(shape, dtype=dtype).uniform_(-bound, bound) for shape in shapes]
    return [torch.randn(batch, length, d, dtype=dtype), *parameters, torch.randint(0, length + 1, (batch,))]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize(("batch", "length", "d", "hidden"), SHAPES)
def test_error_budget(
    isa_level: str, batch: int, length: int, d: int, hidden: int, bias: bool, jagged: bool, dtype: torch.dtype
) -> None:
    items, *parameters, lengths = make(batch, length, d, hidden, dtype)
    lengths[0] = length  # at least one item, jagged ones too
    # What lies beyond a length is never read, and its gradient is zero.
    items[torch.arange(length) >= lengths[:, None]] = math.nan
    offsets = None
    if jagged:
        items, offsets = to_jagged(items, lengths)
        lengths = None

    def ours(items: Tensor, *parameters: Tensor) -> Tensor:
        return gru(items, *parameters[:2], *(parameters[2:] or (None, None)), lengths, offsets=offsets, backend="cpu")

    def exact(items: Tensor, *parameters: Tensor) -> Tensor:
        return reference.gru(items, *parameters[:2], *(parameters[2:] or (None, None)), lengths, offsets)

    inputs = [items, *parameters[: 4 if bias else 2]]
    assert_within_budget(ours, exact, inputs, torch.randn(batch, hidden, dtype=dtype), rounding(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gates_that_are_open_or_shut(isa_level: str, dtype: torch.dtype) -> None:
    """Activations far out, where exponentials vanish."""
    items, *parameters, lengths = make(5, 9, 4, 3, dtype)
    parameters[2] *= 300
    inputs = [items * 1e3, *parameters]
    assert_within_budget(
        lambda *x: gru(*x, lengths, backend="cpu"),
        lambda *x: reference.gru(*x, lengths),
        inputs,
        torch.randn(5, 3, dtype=dtype),
        1e3 * rounding(dtype),  # what goes into the activations is of that order
    )
    far = gru(torch.full_like(items, math.inf), *(torch.ones_like(x) for x in parameters), backend="cpu")
    assert not far.any()  # z is 1: the state stays


def test_a_nan_stays_in_its_sequence(isa_level: str) -> None:
    items, *parameters, _ = make(9, 4, 5, 6, torch.float32)
    items[2, 1, 3] = math.nan
    assert gru(items, *parameters, backend="cpu").isnan().any(1).tolist() == [b == 2 for b in range(9)]


def test_gradcheck_of_the_kernel(isa_level: str) -> None:
    items, *parameters, lengths = make(3, 4, 3, 5)
    cotangent = torch.randn(3, 5, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (items, *parameters)]
    assert torch.autograd.gradcheck(lambda *x: (gru(*x, lengths, backend="cpu") * cotangent).sum(), inputs)


def test_second_derivatives_are_the_references() -> None:
    items, *parameters, lengths = make(2, 3, 3, 2)
    inputs = [x.requires_grad_() for x in (items, *parameters)]
    assert torch.autograd.gradgradcheck(lambda *x: gru(*x, lengths, backend="reference"), inputs)
    (gradient,) = torch.autograd.grad(gru(*inputs, lengths, backend="cpu").sum(), items, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    *inputs, lengths = make(400, 30, 24, 40, torch.float32)
    cotangent = torch.randn(400, 40)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(lambda *x: gru(*x, lengths, backend="cpu"), inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_opcheck(jagged: bool, bias: bool) -> None:
    items, *parameters, lengths = make(3, 6, 4, 5, torch.float32)
    index = (None, None)  # without padding: the states of rows beyond a length are never written
    if jagged:
        items, offsets = to_jagged(items, lengths)
        index = (None, offsets)
    if not bias:
        parameters[2:] = [None, None]
    leaves = [None if x is None else x.requires_grad_() for x in (items, *parameters)]
    torch.library.opcheck(torch.ops.cmi_fast.gru.default, (*leaves, *index, True))
    detached = [None if x is None else x.detach() for x in leaves]
    torch.library.opcheck(torch.ops.cmi_fast.gru.default, (*detached, *index, False))
    _, saved = torch.ops.cmi_fast.gru(*detached, *index, True)
    wanted = (True, True, True, bias, bias)
    torch.library.opcheck(
        torch.ops.cmi_fast.gru_backward.default, (torch.randn(3, 5), saved, *detached, *index, True, *wanted)
    )


def test_unwanted_gradients_are_as_their_fakes() -> None:
    items, *parameters, _ = make(3, 6, 4, 5, torch.bfloat16)
    last, saved = torch.ops.cmi_fast.gru(items, *parameters, None, None, True)
    args = (torch.randn_like(last), saved, items, *parameters, None, None, True, True, False, True, False, False)
    torch.library.opcheck(torch.ops.cmi_fast.gru_backward.default, args)


def test_nothing_is_saved_where_no_gradient_is_wanted() -> None:
    *inputs, lengths = make(3, 4, 4, 5)
    saved: list[int] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.cmi_fast.gru.default:
                saved.append(result[1].numel())
            return result

    with Recorder():
        expected = gru(*inputs, lengths, backend="cpu")
        inputs[1].requires_grad_()
        with torch.no_grad():
            gru(*inputs, lengths, backend="cpu")
        last = gru(*inputs, lengths, backend="cpu")
    assert saved == [0, 0, 3 * 4 * 5 * 16]
    assert torch.equal(last, expected)
    *inputs, lengths = (x.detach() for x in (*inputs, lengths))
    unsaved = torch.ops.cmi_fast.gru(*inputs, lengths, None, False)
    with pytest.raises(RuntimeError, match="saved must be"):
        torch.ops.cmi_fast.gru_backward(*unsaved, *inputs, lengths, None, False, *[True] * 5)


@pytest.mark.parametrize("length", [16, 1200], ids=["cached", "streamed"])
def test_large_gradients(isa_level: str, length: int) -> None:
    """Beyond 4 MB the gradient of the items is written past the caches."""
    items, *parameters, lengths = make(16, length, 64, 3, torch.float32)
    assert_within_budget(
        lambda *x: gru(*x, lengths, backend="cpu"),
        lambda *x: reference.gru(*x, lengths),
        [items, *parameters],
        torch.randn(16, 3),
        rounding(torch.float32),
    )


@pytest.mark.parametrize("wanted", range(5), ids=["items", *PARAMETERS])
def test_no_gradient_is_computed_that_nobody_asked_for(wanted: int) -> None:
    *inputs, lengths = make(3, 4, 4, 5)
    everything = with_gradients(lambda *x: gru(*x, lengths, backend="cpu"), inputs, torch.ones(3, 5))[1:]
    inputs[wanted].requires_grad_()
    asked: list[tuple[bool, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.cmi_fast.gru_backward.default:
                asked.append(args[-5:])
                sizes = [x.numel() * want for x, want in zip(everything, args[-5:], strict=True)]
                assert [x.numel() for x in result] == sizes
            return result

    last = gru(*inputs, lengths, backend="cpu")
    with Recorder():
        last.sum().backward()
    assert asked == [tuple(index == wanted for index in range(5))]
    assert torch.equal(inputs[wanted].grad, everything[wanted])


def test_non_contiguous_arguments() -> None:
    items, *parameters, lengths = make(3, 4, 4, 5)
    inputs = [items, *parameters]
    strided = [
        items.transpose(0, 1).contiguous().transpose(0, 1),
        *(x.repeat_interleave(2, 0)[::2] for x in parameters),
    ]
    cotangent = torch.randn(3, 1, dtype=torch.float64).expand(3, 5)
    for ours, expected in zip(
        with_gradients(lambda *x: gru(*x, lengths, backend="cpu"), strided, cotangent),
        with_gradients(lambda *x: gru(*x, lengths, backend="cpu"), inputs, cotangent.contiguous()),
        strict=True,
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("offsets", [[], [0, 3, 2, 6], [0, 7], [1, 6]])
def test_the_operator_itself_never_reads_out_of_bounds(offsets: list[int]) -> None:
    index = torch.tensor(offsets, dtype=torch.int64)
    items, *parameters, _ = make(1, 6, 4, 5)
    with pytest.raises(RuntimeError, match="offsets must"):
        torch.ops.cmi_fast.gru(items[0], *parameters, None, index, False)


@pytest.mark.parametrize("argument", [1, 2, 3, 4], ids=PARAMETERS)
def test_the_operator_itself_checks_shapes(argument: int) -> None:
    *inputs, _ = make(2, 3, 4, 5)
    inputs[argument] = inputs[argument][1:]
    with pytest.raises(RuntimeError, match="must be"):
        torch.ops.cmi_fast.gru(*inputs, None, None, False)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"weight_hh: expected shape \[15, 5\]", {"weight_hh": torch.zeros(10, 5)}),
        (ValueError, r"weight_ih: expected shape \[15, 4\]", {"weight_ih": torch.zeros(15, 3)}),
        (ValueError, r"bias_ih: expected shape \[15\]", {"bias_ih": torch.zeros(5)}),
        (TypeError, r"bias_hh: expected dtype torch.float32, as items", {"bias_hh": torch.zeros(15).double()}),
        (ValueError, r"gru has no 'cuda' kernel", {"backend": "cuda"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    items, *parameters, _ = make(2, 3, 4, 5, torch.float32)
    with pytest.raises(error, match=message):
        gru(**{"items": items, **dict(zip(PARAMETERS, parameters, strict=True)), **arguments})
