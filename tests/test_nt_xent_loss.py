"""nt_xent_loss: the equation itself, golden values, an outside implementation, and every option."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checking import WITH_CUDA, refuses_cuda, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast import functional

# "auto" is the compiled kernel wherever it takes the dtype.
nt_xent_loss = functional.nt_xent_loss
MODES = [(negatives, direction) for negatives in ("all", "cross_view") for direction in ("both", "first")]


@pytest.fixture(autouse=True, params=["auto" if backend == "cpu" else backend for backend in WITH_CUDA])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file, for each backend."""
    monkeypatch.setitem(globals(), "nt_xent_loss", partial(functional.nt_xent_loss, backend=request.param))
    return request.param


def make(pairs: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    first = torch.randn(pairs, d, dtype=dtype)
    return first, first + 0.5 * torch.randn(pairs, d, dtype=dtype)


def literal(
    first: Tensor, second: Tensor, temperature: float, negatives: str, direction: str, normalize: bool
) -> list[float]:
    """Eq. 6 anchor by anchor, negative by negative, in Python's own floats."""
    views = [[x / x.norm() if normalize else x for x in view] for view in (first, second)]
    losses = []
    for v in (0, 1) if direction == "both" else (0,):
        for i, anchor in enumerate(views[v]):
            positive = math.exp(float(anchor @ views[1 - v][i]) / temperature)
            others = [
                math.exp(float(anchor @ row) / temperature)
                for w in (0, 1)
                if negatives == "all" or w != v
                for j, row in enumerate(views[w])
                if j != i
            ]
            losses.append(-math.log(positive / (positive + sum(others))))
    return losses


@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
def test_equals_the_equation(negatives: str, direction: str, normalize: bool) -> None:
    first, second = make(5, 3)
    options = {"negatives": negatives, "direction": direction, "normalize": normalize}
    losses = nt_xent_loss(first, second, temperature=0.3, reduction="none", **options)
    expected = literal(first, second, 0.3, **options)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    total, mean = (nt_xent_loss(first, second, temperature=0.3, reduction=r, **options) for r in ("sum", "mean"))
    assert float(total) == pytest.approx(sum(expected), rel=1e-12)
    assert float(mean) == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def golden_views(*shape: int) -> tuple[Tensor, Tensor]:
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)

    def wave(a: float, b: float) -> Tensor:
        return (torch.sin(1.7 * a * i + b) + 0.3 * torch.cos(0.9 * i + b)).reshape(shape)

    first = wave(1.0, 0.0)
    return first, first + 0.5 * wave(0.37, 1.1)


@pytest.mark.parametrize(
    ("shape", "negatives", "value"),
    [
        ((2, 2, 4), "all", 2.5191229697),  # L_cl as the paper has it: the mean over pairs of both anchors' losses
        ((3, 4, 8), "all", 2.3861327870),
        ((2, 2, 4), "cross_view", 2.1065693033),  # the CMI authors' code: the two directions' means, summed
        ((3, 4, 8), "cross_view", 1.3017761831),
    ],
)
def test_golden_values_are_twice_the_loss(shape: tuple[int, ...], negatives: str, value: float) -> None:
    first, second = golden_views(*shape)
    assert 2 * float(nt_xent_loss(first, second, negatives=negatives)) == pytest.approx(value, abs=1e-10)


def test_equals_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    views = make(48, 64, torch.float32)
    peer = losses.SupConLoss(temperature=0.1)
    labels = torch.arange(48).repeat(2)
    theirs = with_gradients(lambda a, b: peer(torch.cat([a, b]), labels), views, torch.tensor(1.0))
    ours = with_gradients(nt_xent_loss, views, torch.tensor(1.0))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
def test_cross_view_is_clips_loss(normalize: bool) -> None:
    first, second = make(7, 5)
    a, b = (F.normalize(x, dim=-1) if normalize else x for x in (first, second))
    logits = a @ b.T / 0.2
    rows = torch.arange(7)
    one, other = F.cross_entropy(logits, rows), F.cross_entropy(logits.T, rows)
    loss = partial(nt_xent_loss, first, second, temperature=0.2, negatives="cross_view", normalize=normalize)
    torch.testing.assert_close(loss(), (one + other) / 2)
    torch.testing.assert_close(loss(direction="first"), one)


@pytest.mark.parametrize(("negatives", "direction"), MODES)
def test_first_are_the_anchors_of_the_first_view(negatives: str, direction: str) -> None:
    first, second = make(6, 4)
    both = nt_xent_loss(first, second, negatives=negatives, reduction="none")
    losses = nt_xent_loss(first, second, negatives=negatives, direction=direction, reduction="none")
    torch.testing.assert_close(losses, both[: len(losses)])
    assert len(losses) == {"both": 12, "first": 6}[direction]


@pytest.mark.parametrize("negatives", ["all", "cross_view"])
def test_interests_are_rows(negatives: str) -> None:
    first, second = (x.reshape(3, 4, 5) for x in make(12, 5))
    losses = nt_xent_loss(first, second, negatives=negatives, reduction="none")
    flat = nt_xent_loss(first.reshape(12, 5), second.reshape(12, 5), negatives=negatives, reduction="none")
    assert torch.equal(losses, flat)


@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
@pytest.mark.parametrize(("pairs", "d"), [(1, 3), (2, 1), (5, 3)])
def test_gradcheck(backend: str, negatives: str, direction: str, normalize: bool, pairs: int, d: int) -> None:
    first, second = make(pairs, d)
    temperature = torch.tensor(0.4, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (first, second, temperature)]
    cotangent = torch.randn(2 * pairs if direction == "both" else pairs, dtype=torch.float64)

    def loss(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
        losses = nt_xent_loss(
            first,
            second,
            temperature=temperature,
            negatives=negatives,
            direction=direction,
            normalize=normalize,
            reduction="none",
        )
        return (losses * cotangent).sum()

    # The interpreter takes its time: there, along one random direction.
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=backend == "triton")
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize(("negatives", "direction"), MODES)
def test_temperature_gradient_comes_free(negatives: str, direction: str) -> None:
    """dL/dt = -sum_i z_i . (dL/dz_i) / (2 t) over all 2N unit rows: the scores are z_i . z_j / t."""
    first, second = (F.normalize(x, dim=-1).requires_grad_() for x in make(6, 4))
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    nt_xent_loss(
        first, second, temperature=temperature, negatives=negatives, direction=direction, normalize=False
    ).backward()
    radial = sum((z.detach() * z.grad).sum() for z in (first, second))
    torch.testing.assert_close(temperature.grad, -radial / (2 * 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_without_negatives_the_loss_is_zero(dtype: torch.dtype, negatives: str, direction: str, reduction: str) -> None:
    inputs = make(1, 4, dtype)
    loss = partial(nt_xent_loss, negatives=negatives, direction=direction, reduction=reduction)
    cotangent = torch.ones_like(loss(*inputs))
    for result in with_gradients(loss, inputs, cotangent):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1, 0.03, 0.02, 0.005, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ["random", "identical", "opposite"])
def test_temperatures(temperature: float, dtype: torch.dtype, rows: str) -> None:
    first, second = make(9, 17, dtype)
    if rows == "identical":
        first = second = first[:1].expand(9, -1)
    if rows == "opposite":
        second = -first
    loss = partial(nt_xent_loss, temperature=temperature)
    losses, *gradients = with_gradients(loss, (first, second), torch.tensor(1.0))
    exact, *exact_gradients = with_gradients(loss, (first.double(), second.double()), torch.tensor(1.0))
    # A rounded cosine moves the loss by 1/temperature as much, and it may be as large as 2/temperature.
    error = 4 * torch.finfo(torch.float32).eps / temperature
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=error)
    if rows == "identical":
        torch.testing.assert_close(exact, torch.tensor(17.0, dtype=torch.float64).log())
    for gradient, true in zip(gradients, exact_gradients, strict=True):
        assert gradient.isfinite().all()
        if temperature > 1e-3:
            tolerance = (2.5e-3 if dtype == torch.bfloat16 else 1e-5) + 20 * error
            assert (gradient.double() - true).norm() <= tolerance * max(float(true.norm()), 1 / temperature)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_of_the_inputs_does_not_matter(scale: float) -> None:
    first, second = make(6, 5, torch.float32)
    expected = with_gradients(nt_xent_loss, (first, second), torch.tensor(1.0))
    loss, first_grad, second_grad = with_gradients(nt_xent_loss, (first * scale, second / scale), torch.tensor(1.0))
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(first_grad * scale, expected[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(second_grad / scale, expected[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_are_zero_and_get_zero_gradients(dtype: torch.dtype) -> None:
    first, second = make(5, 4, dtype)
    first[2] = 0
    losses = nt_xent_loss(first, second, temperature=0.5, reduction="none")
    others = [j for j in range(10) if j not in (2, 7)]
    # The zero row scores zero with all: its loss is the logarithm of how many rows it is compared with.
    assert float(losses[2]) == pytest.approx(math.log(9), rel=1e-6)
    unit = F.normalize(torch.cat([first, second]), dim=-1)
    exact = torch.cat([torch.zeros(1, dtype=dtype), unit[7] @ unit[others].T / 0.5]).logsumexp(0)
    torch.testing.assert_close(losses[7], exact)
    _, first_grad, second_grad = with_gradients(nt_xent_loss, (first, second), torch.tensor(1.0))
    assert not first_grad[2].any()
    assert first_grad[1].any()
    assert second_grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pairs", [1, 4])
def test_what_is_not_finite_gives_nan(bad: float, pairs: int) -> None:
    first, second = make(pairs, 5, torch.float32)
    first[0, 2] = bad
    assert nt_xent_loss(first, second, reduction="none").isnan().all()
    assert nt_xent_loss(second, first).isnan()


def test_a_well_separated_pair_keeps_its_small_loss() -> None:
    """softplus keeps what log-sum-exp minus the positive's score would round away."""
    first = torch.eye(2)
    losses = nt_xent_loss(first, first, temperature=0.04, reduction="none")
    torch.testing.assert_close(losses, torch.full((4,), 2 * math.exp(-25)), rtol=1e-4, atol=0)


def test_a_large_loss_is_exact() -> None:
    """PyTorch's softplus is x itself beyond 20, which is wrong by 2e-9 there."""
    first = torch.eye(2, dtype=torch.float64)
    losses = nt_xent_loss(first, -first, temperature=1 / 21, reduction="none")
    expected = torch.full((4,), math.log1p(2 * math.exp(21)), dtype=torch.float64)
    torch.testing.assert_close(losses, expected, rtol=1e-14, atol=0)


@given(seed=st.integers(0, 2**31), pairs=st.integers(1, 8), d=st.integers(1, 9), mode=st.sampled_from(MODES))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_properties(seed: int, pairs: int, d: int, mode: tuple[str, str]) -> None:
    torch.manual_seed(seed)
    first, second = make(pairs, d)
    loss = partial(nt_xent_loss, negatives=mode[0], direction=mode[1], temperature=0.3)
    losses = loss(first, second, reduction="none")
    assert (losses >= 0).all()
    order = torch.randperm(pairs)
    permuted = loss(first[order], second[order], reduction="none").reshape(-1, pairs)
    torch.testing.assert_close(permuted, losses.reshape(-1, pairs)[:, order])
    if mode[1] == "both":
        swapped = loss(second, first, reduction="none").reshape(2, pairs)
        torch.testing.assert_close(swapped, losses.reshape(2, pairs).flip(0))
    scaled = loss(first * torch.rand(pairs, 1).add(0.1), 7 * second, reduction="none")
    torch.testing.assert_close(scaled, losses)
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    torch.testing.assert_close(loss(first @ rotation, second @ rotation, reduction="none"), losses)
    padded = loss(F.pad(first, (0, 3)), F.pad(second, (0, 3)), reduction="none")
    torch.testing.assert_close(padded, losses)
    # More negatives can only cost more.
    assert (loss(first, second, reduction="none", negatives="all") >= losses - 1e-12).all()


def test_strided_inputs() -> None:
    first, second = make(6, 4)
    strided = first.T.contiguous().T
    expanded = second[:1].expand(6, -1)
    torch.testing.assert_close(nt_xent_loss(strided, expanded), nt_xent_loss(first, expanded.clone()))
    swapped = first.reshape(2, 3, 4).transpose(0, 1)
    torch.testing.assert_close(nt_xent_loss(swapped, swapped), nt_xent_loss(*[swapped.contiguous()] * 2))


def test_no_gradient_is_computed_that_nobody_asked_for() -> None:
    first, second = make(3, 4)
    nt_xent_loss(first, second.requires_grad_()).backward()
    assert first.grad is None
    assert second.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
def test_half_types_are_summed_in_float32(dtype: torch.dtype, normalize: bool) -> None:
    inputs = make(40, 16, dtype)
    loss = partial(nt_xent_loss, normalize=normalize, temperature=0.1)
    ours = with_gradients(loss, inputs, torch.tensor(1.0))
    exact = with_gradients(loss, [x.double() for x in inputs], torch.tensor(1.0))
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    for gradient, true in zip(ours[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - true).norm() <= 2.5e-3 * true.norm()


def test_autocast() -> None:
    first, second = make(6, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(first.requires_grad_(), second)
    assert torch.equal(loss, nt_xent_loss(first.bfloat16(), second.bfloat16()))
    assert loss.dtype == torch.float32
    loss.backward()
    assert first.grad is not None
    assert first.grad.dtype == torch.float32


@pytest.mark.parametrize(("negatives", "direction"), MODES)
def test_compiles_as_one_graph(negatives: str, direction: str) -> None:
    torch._dynamo.reset()  # the other parameters' graphs count against one limit
    inputs = *make(6, 5, torch.float32), torch.tensor(0.2)

    def loss(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
        return nt_xent_loss(first, second, temperature=temperature, negatives=negatives, direction=direction)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = with_gradients(loss, inputs, torch.tensor(1.0))
    for our, their in zip(with_gradients(compiled, inputs, torch.tensor(1.0)), expected, strict=True):
        torch.testing.assert_close(our, their)


def test_a_temperature_at_the_limit_is_allowed_in_any_dtype() -> None:
    first, second = make(3, 4, torch.float32)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert nt_xent_loss(first, second, temperature=torch.tensor(1e-5, dtype=dtype)).isfinite()


FIRST, SECOND = torch.zeros(3, 5), torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"first: expected a tensor \[N, d\] or \[B, m, d\], found list", {"first": [1.0]}),
        (TypeError, r"second: expected a dtype among .*found int64 \[3, 5\]", {"second": SECOND.long()}),
        (ValueError, r"first: expected shape \[N, d\] or \[B, m, d\], found float32 \[5\]", {"first": FIRST[0]}),
        (ValueError, r"first: expected shape .*found float32 \[1, 1, 3, 5\]", {"first": FIRST[None, None]}),
        (ValueError, r"second: expected shape \[3, 5\] \(as first\), found \[2, 5\]", {"second": SECOND[:2]}),
        (ValueError, r"second: expected shape \[3, 5\] \(as first\), found \[1, 3, 5\]", {"second": SECOND[None]}),
        (ValueError, r"first: .* without a zero, found \[0, 5\]", {"first": FIRST[:0], "second": SECOND[:0]}),
        (ValueError, r"first: .* without a zero, found \[3, 0\]", {"first": FIRST[:, :0], "second": SECOND[:, :0]}),
        (TypeError, r"second: expected dtype torch.float32, as first", {"second": SECOND.double()}),
        (ValueError, r"second: expected device cpu, as first, found meta", {"second": SECOND.to("meta")}),
        (ValueError, r"negatives: expected one of all, cross_view, found 'hard'", {"negatives": "hard"}),
        (ValueError, r"direction: expected one of both, first, found 'second'", {"direction": "second"}),
        (ValueError, r"reduction: expected one of none, sum, mean, found None", {"reduction": None}),
        (ValueError, r"temperature: expected a positive finite number, found 0", {"temperature": 0.0}),
        (ValueError, r"temperature: .* found inf", {"temperature": math.inf}),
        (ValueError, r"temperature: expected at least 1e-05, found 9e-06", {"temperature": 9e-6}),
        (ValueError, r"temperature: expected at least 1e-05", {"temperature": torch.tensor(9e-6)}),
        (ValueError, r"temperature: expected a number or a 0-d tensor", {"temperature": torch.ones(1)}),
        (TypeError, r"temperature: expected a number", {"temperature": None}),
        (ValueError, r"backend: expected one of auto, reference", {"backend": "gpu"}),
        pytest.param(
            ValueError, r"backend: nt_xent_loss cannot run on 'cuda': ", {"backend": "cuda"}, marks=refuses_cuda
        ),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        nt_xent_loss(**{"first": FIRST, "second": SECOND, **arguments})
