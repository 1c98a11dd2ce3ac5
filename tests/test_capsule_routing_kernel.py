"""The compiled capsule_routing: error budget at every tile edge and ISA level, determinism, registration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import assert_within_budget, needs_native, rounding, to_jagged, with_gradients
from test_capsule_routing import MAPS, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmi_fast.functional import capsule_routing
from cmi_fast.ops.checks import FLOATING

pytestmark = needs_native


def tolerance(dtype: torch.dtype) -> float:
    """In float64 the reference, which stands for the truth, is as inexact as what is tested: sums of thousands."""
    return 64 * torch.finfo(dtype).eps if dtype == torch.float64 else rounding(dtype)


# B, L, d, e, K: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, 2, id="odd"),
    pytest.param(9, 16, 64, 64, 4, id="aligned"),
    pytest.param(3, 67, 17, 33, 9, id="one-past-a-tile-and-a-block"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(300, 6, 8, 16, 3, id="several-parts"),
]


def routed(options: dict[str, Any], backend: str = "cpu") -> Any:
    def route(items: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
        given = {**options, "logits": options["logits"].to(items.dtype)} if "logits" in options else options
        return capsule_routing(items, maps, bias=bias, **given, backend=backend)

    return route


def case(
    batch: int, length: int, d: int, e: int, k: int, maps: str, dtype: torch.dtype, jagged: bool
) -> tuple[list[Tensor], dict[str, Any]]:
    """Items, maps and bias, and the other arguments; NaN beyond the lengths."""
    made = make(batch, length, d, e, k, maps, dtype)
    inputs, options = [made.pop(name) for name in ("items", "maps", "bias")], made
    options["lengths"][0] = length  # at least one item, jagged ones too
    padding = torch.arange(length) >= options["lengths"][:, None]
    inputs[0][padding], options["logits"][padding] = math.nan, math.nan
    if jagged:
        lengths = options.pop("lengths")
        inputs[0], options["offsets"] = to_jagged(inputs[0], lengths)
        options["logits"], _ = to_jagged(options["logits"], lengths)
    return inputs, options


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize(("batch", "length", "d", "e", "k"), SHAPES)
def test_error_budget(
    isa_level: str, batch: int, length: int, d: int, e: int, k: int, maps: str, jagged: bool, dtype: torch.dtype
) -> None:
    inputs, options = case(batch, length, d, e, k, maps, dtype, jagged)
    cotangent = torch.randn(batch, k, e, dtype=dtype)
    assert_within_budget(routed(options), routed(options, "reference"), inputs, cotangent, tolerance(dtype))
    if maps == "position":  # without noise, bias or inactive interests
        options = {name: x for name, x in options.items() if name not in ("logits", "active")}
        assert_within_budget(routed(options), routed(options, "reference"), inputs[:2], cotangent, tolerance(dtype))


@pytest.mark.parametrize("maps", MAPS)
def test_a_nan_stays_in_its_sequence(isa_level: str, maps: str) -> None:
    inputs, options = case(9, 4, 5, 6, 3, maps, torch.float32, jagged=False)
    options["lengths"][:] = 4
    inputs[0], options["logits"] = torch.randn(9, 4, 5), torch.randn(9, 4, 3)
    inputs[0][2, 1, 3] = math.nan
    bad = routed(options)(*inputs).isnan().flatten(1).any(1)
    assert bad.tolist() == [b == 2 for b in range(9)]


@pytest.mark.parametrize("maps", MAPS)
def test_zeros_have_a_gradient(maps: str) -> None:
    """A sum of zero: what squashing makes of it, forward and backward."""
    inputs, options = case(3, 4, 5, 6, 3, maps, torch.float32, jagged=False)
    inputs = [torch.zeros_like(inputs[0]), inputs[1]]
    for x in with_gradients(routed(options), inputs, torch.ones(3, 3, 6)):
        assert not x.any()


def test_second_derivatives_are_the_references() -> None:
    inputs, options = case(2, 3, 3, 2, 2, "shared", torch.float64, jagged=True)
    inputs = [x.requires_grad_() for x in inputs]
    options["iterations"] = 1
    assert torch.autograd.gradgradcheck(routed(options, "reference"), inputs)
    (gradient,) = torch.autograd.grad(routed(options)(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("maps", MAPS)
def test_same_bits_again_and_on_any_number_of_threads(maps: str) -> None:
    inputs, options = case(300, 40, 24, 20, 5, maps, torch.float32, jagged=False)
    inputs[0] = inputs[0].nan_to_num()
    cotangent = torch.randn(300, 5, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(routed(options), inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def arguments(maps: str, jagged: bool, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Of the operator itself. Without padding: the weights of rows beyond a length are never written."""
    inputs, options = case(3, 6, 4, 5, 2, maps, torch.float32, jagged=True)
    items, (matrix, bias) = inputs[0].to(dtype), inputs[1:]
    logits, active, offsets = options["logits"], options["active"], options["offsets"]
    if not jagged:
        items, logits, active, offsets = torch.randn(3, 6, 4).to(dtype), torch.randn(3, 6, 2), None, None
    return [items, matrix[(None,) * (4 - matrix.dim())], bias, logits, active, None, offsets, 2, 3]


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_opcheck(maps: str, jagged: bool) -> None:
    given = arguments(maps, jagged)
    leaves = [x.requires_grad_() if i < 3 else x for i, x in enumerate(given)]
    torch.library.opcheck(torch.ops.cmi_fast.capsule_routing.default, tuple(leaves))
    detached = [x.detach() if isinstance(x, Tensor) else x for x in given]
    result, *saved = torch.ops.cmi_fast.capsule_routing(*detached)
    for wanted in ((True, True, True), (False, True, False)):
        torch.library.opcheck(
            torch.ops.cmi_fast.capsule_routing_backward.default,
            (torch.randn_like(result), *saved, *detached, *wanted),
        )


@pytest.mark.parametrize("maps", MAPS)
def test_unwanted_gradients_are_as_their_fakes(maps: str) -> None:
    given = arguments(maps, False, torch.bfloat16)
    result, *saved = torch.ops.cmi_fast.capsule_routing(*given)
    wanted = (True, False, False)
    torch.library.opcheck(
        torch.ops.cmi_fast.capsule_routing_backward.default,
        (torch.randn_like(result), *saved, *given, *wanted),
    )


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("wanted", range(3), ids=["items", "maps", "bias"])
def test_no_gradient_is_computed_that_nobody_asked_for(maps: str, wanted: int) -> None:
    inputs, options = case(3, 4, 4, 5, 2, maps, torch.float64, jagged=True)
    everything = with_gradients(routed(options), inputs, torch.ones(3, 2, 5))[1:]
    inputs[wanted].requires_grad_()
    asked: list[tuple[bool, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.cmi_fast.capsule_routing_backward.default:
                asked.append(args[-3:])
                sizes = [x.numel() * want for x, want in zip(everything, args[-3:], strict=True)]
                assert [x.numel() for x in result] == sizes
            return result

    result = routed(options)(*inputs)
    with Recorder():
        result.sum().backward()
    assert asked == [tuple(index == wanted for index in range(3))]
    assert torch.equal(inputs[wanted].grad, everything[wanted])


@pytest.mark.parametrize("maps", MAPS)
def test_non_contiguous_arguments(maps: str) -> None:
    inputs, options = case(3, 4, 4, 5, 2, maps, torch.float64, jagged=False)
    inputs[0] = inputs[0].nan_to_num()
    strided = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1)]
    strided += [x.repeat_interleave(2, 0)[::2] for x in inputs[1:]]
    cotangent = torch.randn(3, 1, 5, dtype=torch.float64).expand(3, 2, 5)
    for ours, expected in zip(
        with_gradients(routed(options), strided, cotangent),
        with_gradients(routed(options), inputs, cotangent.contiguous()),
        strict=True,
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("maps", MAPS)
def test_autocast_and_compile(maps: str) -> None:
    inputs, options = case(3, 5, 4, 6, 2, maps, torch.float32, jagged=False)
    inputs[0], options["logits"] = inputs[0].nan_to_num(), options["logits"].nan_to_num()
    expected = with_gradients(routed(options), inputs, torch.ones(3, 2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        ours = routed(options)(*inputs)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected[0], rtol=0, atol=0.05)
    compiled = torch.compile(routed(options), fullgraph=True, backend="aot_eager")
    for ours, other in zip(with_gradients(compiled, inputs, torch.ones(3, 2, 6)), expected, strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("offsets", [[], [0, 3, 2, 6], [0, 7], [1, 6]])
def test_the_operator_itself_never_reads_out_of_bounds(offsets: list[int]) -> None:
    index = torch.tensor(offsets, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="offsets must"):
        torch.ops.cmi_fast.capsule_routing(
            torch.zeros(6, 4), torch.zeros(1, 1, 4, 4), None, None, None, None, index, 2, 3
        )


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        (1, torch.zeros(6, 2, 5, 3)),
        (1, torch.zeros(5, 2, 5, 4)),
        (1, torch.zeros(6, 1, 5, 4)),
        (2, torch.zeros(4)),
        (3, torch.zeros(3, 6, 1)),
        (4, torch.tensor([1, 3, 1])),
        (7, 0),
        (8, 0),
    ],
)
def test_the_operator_itself_checks_its_arguments(argument: int, bad: Any) -> None:
    given = arguments("position", jagged=False)
    given[argument] = bad
    with pytest.raises(RuntimeError, match=r"must be|may be longer|is outside|expected at least"):
        torch.ops.cmi_fast.capsule_routing(*given)
