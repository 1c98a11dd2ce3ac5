"""The compiled interest_softmax_loss: error budget at every tile edge and ISA level, determinism, registration."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from checking import assert_within_budget, needs_native, with_gradients
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import interest_softmax_loss

pytestmark = needs_native

# B, m, C, d. A tile has 64 candidates; users are taken so many at a time that they have about 64 interests.
SHAPES = [
    pytest.param(1, 1, 1, 1, id="smallest"),
    pytest.param(1, 8, 2, 64, id="one-user"),
    pytest.param(5, 3, 63, 17, id="below-a-tile"),
    pytest.param(9, 8, 64, 64, id="one-tile"),
    pytest.param(70, 1, 65, 63, id="one-interest"),
    pytest.param(3, 64, 130, 65, id="many-interests"),
    pytest.param(2, 256, 70, 3, id="most-interests"),
    pytest.param(20, 5, 200, 200, id="many-dimensions"),
    pytest.param(150, 8, 100, 16, id="many-users"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
FLOATING = ("interests", "candidates", "general", "candidate_bias")


def make(users: int, m: int, count: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every argument; scores have a variance of order 10."""
    targets = torch.randint(0, count, (users,))
    exclude = torch.rand(users, count) < 0.3
    exclude[torch.arange(users), targets] = False
    return {
        "interests": torch.randn(users, m, d, dtype=dtype) / math.sqrt(d),
        "candidates": torch.randn(count, d, dtype=dtype),
        "general": torch.randn(users, d, dtype=dtype) / math.sqrt(d),
        "candidate_bias": torch.randn(count, dtype=dtype),
        "targets": targets,
        "exclude": exclude,
        "candidate_ids": torch.randint(0, count // 2 + 1, (count,)),
    }


def losses_of(
    function: Callable[..., Tensor], arguments: dict[str, Tensor], names: tuple[str, ...] = FLOATING
) -> Callable[..., Tensor]:
    """``function`` of the temperature and of the arguments that ``names`` counts, the others fixed; [B]."""
    fixed = {name: x for name, x in arguments.items() if name not in names}

    def losses(temperature: Tensor, *inputs: Tensor) -> Tensor:
        given = dict(zip(names, inputs, strict=True))
        return function(**given, **fixed, temperature=temperature, reduction="none")

    return losses


cpu = partial(interest_softmax_loss, backend="cpu")


@pytest.mark.usefixtures("poisoned")
@DTYPES
@pytest.mark.parametrize("options", [(), ("general",), ("candidate_bias", "exclude"), ("general", "candidate_ids")])
@pytest.mark.parametrize(("users", "m", "count", "d"), SHAPES)
def test_error_budget(
    isa_level: str, users: int, m: int, count: int, d: int, options: tuple[str, ...], dtype: torch.dtype
) -> None:
    everything = make(users, m, count, d, dtype)
    arguments = {name: everything[name] for name in ("interests", "candidates", "targets", *options)}
    names = tuple(name for name in FLOATING if name in arguments)
    inputs = [torch.tensor(0.3, dtype=dtype), *(arguments[name] for name in names)]
    # A score's rounding is an error of the exponent, so relative in every share.
    largest = 4 * math.sqrt(d) / 0.3
    assert_within_budget(
        losses_of(cpu, arguments, names),
        losses_of(reference.interest_softmax_loss, arguments, names),
        inputs,
        torch.randn(users),
        tolerance=4 * largest * torch.finfo(dtype).eps,
    )


@DTYPES
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_scores(isa_level: str, size: float, dtype: torch.dtype) -> None:
    arguments = make(20, 4, 100, 8, dtype)
    arguments["candidate_bias"] *= abs(size)
    arguments["candidate_bias"] += size
    inputs = [torch.tensor(1e-3, dtype=dtype), *(arguments[name] for name in FLOATING)]
    assert all(x.isfinite().all() for x in with_gradients(losses_of(cpu, arguments), inputs, torch.randn(20)))
    # Scores reach 4e4, and their rounding moves the shares.
    tolerance = 4e4 * torch.finfo(dtype).eps
    exact = losses_of(reference.interest_softmax_loss, arguments)
    assert_within_budget(losses_of(cpu, arguments), exact, inputs, torch.randn(20), tolerance)


def test_a_small_loss_keeps_its_digits(isa_level: str) -> None:
    # log_softmax in float32 gives 0 here: the other's share, e^-30, is lost beside the target's 1.
    interests, candidates = torch.tensor([[[1.0]]]), torch.tensor([[30.0], [0.0]])
    loss = partial(cpu, targets=torch.tensor([0]), temperature=1.0)
    value, _, gradient = with_gradients(loss, (interests, candidates), torch.tensor(1.0))
    share = math.exp(-30.0)
    torch.testing.assert_close(value, torch.tensor(share))
    torch.testing.assert_close(gradient, torch.tensor([[-share], [share]]), atol=0, rtol=1e-6)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("count", [2, 64, 65, 200])
def test_without_competitors_nothing_is_lost(isa_level: str, count: int) -> None:
    arguments = make(9, 3, count, 5, torch.float32)
    arguments["exclude"] = torch.arange(count) != arguments["targets"][:, None]
    inputs = [torch.tensor(0.3), *(arguments[name] for name in FLOATING)]
    for result in with_gradients(losses_of(cpu, arguments), inputs, torch.randn(9)):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATING)
@DTYPES
def test_what_is_not_finite_shows_as_in_the_reference(
    isa_level: str, name: str, value: float, dtype: torch.dtype
) -> None:
    arguments = make(6, 3, 70, 5, dtype)
    del arguments["exclude"], arguments["candidate_ids"]
    arguments[name].view(-1)[-2] = value
    inputs = [torch.tensor(0.3, dtype=dtype), *(arguments[name] for name in FLOATING)]
    ours = losses_of(cpu, arguments)(*inputs)
    exact = losses_of(reference.interest_softmax_loss, arguments)(*inputs)
    assert torch.equal(ours.isfinite(), exact.isfinite())
    if math.isnan(value):
        users = {"interests": 5, "general": 5}.get(name)
        assert ours.isnan().nonzero().flatten().tolist() == ([users] if users else list(range(6)))


def test_a_nan_with_any_payload_stays_nan(isa_level: str) -> None:
    arguments = make(3, 3, 70, 5, torch.float32)
    arguments["interests"].view(torch.int32)[1, 1, 2] = 0x7FC00001
    inputs = [torch.tensor(0.3), *(arguments[name] for name in FLOATING)]
    losses, _, interests, *_ = with_gradients(losses_of(cpu, arguments), inputs, torch.ones(3))
    assert losses.isnan().tolist() == [False, True, False]
    assert interests.isnan().flatten(1).any(1).tolist() == [False, True, False]


@DTYPES
def test_the_first_of_equal_interests_learns(isa_level: str, dtype: torch.dtype) -> None:
    arguments = make(5, 2, 70, 4, dtype)
    twice = arguments["interests"].repeat_interleave(3, dim=1)
    (_, gradient) = with_gradients(
        lambda u: cpu(**{**arguments, "interests": u}, reduction="none"), (twice,), torch.randn(5)
    )
    by_copy = gradient.view(5, 2, 3, 4)
    assert by_copy[:, :, 0].any()
    assert not by_copy[:, :, 1:].any()


def test_strided_and_expanded_inputs(isa_level: str) -> None:
    arguments = make(6, 3, 70, 5, torch.float64)
    arguments["interests"] = arguments["interests"].transpose(0, 1).contiguous().transpose(0, 1)
    arguments["candidates"] = arguments["candidates"].T.contiguous().T
    arguments["general"] = arguments["general"][:1].expand(6, -1)
    arguments["candidate_bias"] = arguments["candidate_bias"][:1].expand(70)
    arguments["exclude"] = arguments["exclude"].T.contiguous().T
    arguments["candidate_ids"] = arguments["candidate_ids"].repeat_interleave(2)[::2]
    assert not any(x.is_contiguous() for name, x in arguments.items() if name != "targets")
    torch.testing.assert_close(cpu(**arguments), interest_softmax_loss(**arguments, backend="reference"))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(isa_level: str, dtype: torch.dtype) -> None:
    arguments = make(40, 4, 150, 33, dtype)
    inputs = [arguments[name] for name in FLOATING]
    cotangent = torch.randn(40)
    ours = with_gradients(partial(losses_of(cpu, arguments), 0.3), inputs, cotangent)
    wide = partial(losses_of(reference.interest_softmax_loss, arguments), 0.3)
    exact = with_gradients(wide, [x.double() for x in inputs], cotangent.double())
    assert ours[0].dtype == torch.float32
    assert (ours[0].double() - exact[0]).norm() <= 1e-5 * exact[0].norm()
    for gradient, true in zip(ours[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - true).norm() <= 2.5e-3 * true.norm()


@pytest.mark.parametrize(("users", "count"), [(300, 600), (2, 9000)], ids=["many-users", "many-candidates"])
def test_same_bits_again_and_on_any_number_of_threads(users: int, count: int) -> None:
    arguments = make(users, 8, count, 64, torch.float32)
    inputs = [torch.tensor(0.3), *(arguments[name] for name in FLOATING)]
    cotangent = torch.randn(users)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 4, 2):
            torch.set_num_threads(number)
            results.append(with_gradients(losses_of(cpu, arguments), inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def operator_arguments(
    dtype: torch.dtype, options: bool = True, reduction: str = "none"
) -> list[Tensor | float | str | None]:
    arguments = make(5, 3, 70, 4, dtype)
    tensors = [arguments[name] for name in ("interests", "candidates", "targets")]
    optional = [
        arguments[name] if options else None for name in ("general", "candidate_bias", "exclude", "candidate_ids")
    ]
    return [*tensors, *optional, 1.0, torch.tensor(0.2, dtype=dtype), reduction]


@pytest.mark.parametrize(("options", "reduction"), [(False, "none"), (True, "none"), (False, "mean"), (True, "sum")])
def test_opcheck(options: bool, reduction: str) -> None:
    args = operator_arguments(torch.float32, options, reduction)
    outputs = torch.ops.cmi_fast.interest_softmax_loss(*args)
    torch.library.opcheck(
        torch.ops.cmi_fast.interest_softmax_loss_backward.default,
        (torch.randn_like(outputs[0]), *outputs[1:], *args, True, True, options, options, True),
    )
    leaves = [x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    torch.library.opcheck(torch.ops.cmi_fast.interest_softmax_loss.default, leaves)


@pytest.mark.parametrize("wanted", range(5))
def test_backward_returns_only_what_is_wanted(wanted: int) -> None:
    args = operator_arguments(torch.float64)
    outputs = torch.ops.cmi_fast.interest_softmax_loss(*args)
    backward = partial(torch.ops.cmi_fast.interest_softmax_loss_backward, torch.randn(5).double(), *outputs[1:], *args)
    everything = backward(*[True] * 5)
    for index, (gradient, full) in enumerate(zip(backward(*(i == wanted for i in range(5))), everything, strict=True)):
        assert torch.equal(gradient, full) if index == wanted else gradient.numel() == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_operator_reduces(dtype: torch.dtype, reduction: str) -> None:
    arguments = make(5, 3, 70, 4, dtype)
    inputs = [arguments[name] for name in FLOATING]
    cotangent = torch.tensor(-1.7)

    def loss(reduce: str) -> Callable[..., Tensor]:
        def run(*floating: Tensor) -> Tensor:
            losses = cpu(**{**arguments, **dict(zip(FLOATING, floating, strict=True))}, reduction=reduce)
            return getattr(losses, reduction)() if reduce == "none" else losses

        return run

    expected = with_gradients(loss("none"), inputs, cotangent)
    for our, their in zip(with_gradients(loss(reduction), inputs, cotangent), expected, strict=True):
        torch.testing.assert_close(our, their)


def test_second_derivative_is_refused() -> None:
    arguments = make(3, 2, 5, 4, torch.float32)
    loss = cpu(**{**arguments, "interests": arguments["interests"].requires_grad_()})
    (gradient,) = torch.autograd.grad(loss, arguments["interests"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_compiles_as_one_graph_with_the_kernel() -> None:
    arguments = make(6, 3, 70, 5, torch.float32)
    inputs = [torch.tensor(0.3), *(arguments[name] for name in FLOATING)]
    compiled = torch.compile(losses_of(cpu, arguments), fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(6)
    expected = with_gradients(losses_of(cpu, arguments), inputs, cotangent)
    assert all(map(torch.equal, with_gradients(compiled, inputs, cotangent), expected))


def test_a_compiled_graph_checks_values_in_the_operator() -> None:
    arguments = make(3, 2, 5, 4, torch.float32)
    arguments["targets"][1] = 5
    compiled = torch.compile(cpu, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"targets\[1\] = 5 is outside \[0, 5\)"):
        compiled(**arguments)


def test_more_interests_than_a_byte_tells_apart() -> None:
    arguments = make(2, 257, 5, 4, torch.float32)
    with pytest.raises(ValueError, match=r"backend: .* its kernel takes up to 256 interests, found 257"):
        cpu(**arguments)
    assert torch.equal(interest_softmax_loss(**arguments), interest_softmax_loss(**arguments, backend="reference"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(5, 4)}, r"interests must be \[B, m, d\]"),
        ({1: torch.zeros(70, 3)}, "candidates must fit interests"),
        ({1: torch.zeros(70, 4).double()}, "tensors must share one floating dtype"),
        ({3: torch.zeros(5, 4).bfloat16()}, "floating inputs must share one dtype"),
        ({2: torch.zeros(4).long()}, "targets must fit interests"),
        ({2: torch.zeros(5).int()}, "targets is of the wrong dtype"),
        ({5: torch.zeros(5, 69).bool()}, "exclude must fit interests"),
        ({5: torch.ones(5, 70).bool()}, r"exclude\[0, \d+\] removes the target of row 0"),
        ({9: "median"}, "reduction must be none, sum or mean, found median"),
    ],
)
def test_the_operator_itself_never_reads_out_of_bounds(change: dict[int, Tensor | str], message: str) -> None:
    args = operator_arguments(torch.float32)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cmi_fast.interest_softmax_loss(*(change.get(index, x) for index, x in enumerate(args)))


@pytest.mark.parametrize("one", range(5))
def test_opcheck_of_one_gradient(one: int) -> None:
    interests, candidates, general = (torch.randn(*shape).bfloat16() for shape in ((3, 2, 5), (4, 5), (3, 5)))
    inputs = (interests, candidates, torch.tensor([0, 3, 1]), general, torch.randn(4).bfloat16(), None, None)
    args = (*inputs, 1.0, torch.tensor(0.2), "none")
    losses, *saved = torch.ops.cmi_fast.interest_softmax_loss(*args)
    wanted = [index == one for index in range(5)]
    backward = torch.ops.cmi_fast.interest_softmax_loss_backward.default
    torch.library.opcheck(backward, (torch.randn_like(losses), *saved, *args, *wanted))
