"""The compiled nt_xent_loss: error budget at every tile edge and ISA level, determinism, memory, registration."""

from __future__ import annotations

import math

import pytest
import torch
from checking import assert_within_budget, needs_native, with_gradients
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import nt_xent_loss

pytestmark = needs_native

HALF = [torch.bfloat16, torch.float16]
MODES = [(negatives, direction) for negatives in ("all", "cross_view") for direction in ("both", "first")]
# N, d. A tile has 64 rows, of the 2N of both views.
SHAPES = [
    pytest.param(1, 5, id="one-pair"),
    pytest.param(3, 1, id="one-dimension"),
    pytest.param(31, 17, id="below-a-tile"),
    pytest.param(32, 64, id="one-tile"),
    pytest.param(33, 63, id="above-a-tile"),
    pytest.param(64, 65, id="views-on-tile-edges"),
    pytest.param(100, 3, id="odd-number-of-tiles"),
    pytest.param(150, 200, id="many-dimensions"),
]


def make(pairs: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    first = torch.randn(pairs, d, dtype=dtype)
    return first, first + torch.randn(pairs, d, dtype=dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("temperature", [0.1, 0.005], ids=["shared-shift", "running-maximum"])
@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize(("pairs", "d"), SHAPES)
def test_error_budget(
    isa_level: str, pairs: int, d: int, negatives: str, direction: str, temperature: float, dtype: torch.dtype
) -> None:
    inputs = make(pairs, d, dtype)
    anchors = 2 * pairs if direction == "both" else pairs

    def ours(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent_loss(
            first,
            second,
            temperature=temperature,
            negatives=negatives,
            direction=direction,
            reduction="none",
            backend="cpu",
        )

    def exact(first: Tensor, second: Tensor) -> Tensor:
        return reference.nt_xent_loss(first, second, temperature, negatives, direction, reduction="none")

    # A cosine's rounding, divided by the temperature, is an error of the exponent, so relative in every gradient.
    tolerance = 2 * torch.finfo(dtype).eps / temperature
    assert_within_budget(ours, exact, inputs, torch.randn(anchors), tolerance)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("temperature", [0.1, 0.01], ids=["shared-shift", "running-maximum"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "dot"])
@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize(("pairs", "d"), SHAPES)
def test_error_budget_of_half_types(
    isa_level: str,
    pairs: int,
    d: int,
    negatives: str,
    direction: str,
    normalize: bool,
    temperature: float,
    dtype: torch.dtype,
) -> None:
    first, second = make(pairs, d, dtype)
    options = {"negatives": negatives, "direction": direction, "normalize": normalize, "reduction": "none"}
    if not normalize:
        temperature *= 20
    anchors = 2 * pairs if direction == "both" else pairs

    def ours(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent_loss(first, second, temperature=temperature, backend="cpu", **options)

    def exact(first: Tensor, second: Tensor) -> Tensor:
        return reference.nt_xent_loss(first, second, temperature, **options)

    # Sums run in float32; its rounding of a score is a relative error of every gradient. Where products are bfloat16's
    # own, a gradient's terms are rounded to it, each by up to 2^-9 of itself, and two of them may be as large as their
    # sum.
    largest = 1.0 if normalize else max(float(x.double().square().sum(-1).max()) for x in (first, second))
    tolerance = 2 * torch.finfo(torch.float32).eps * largest / temperature
    if dtype == torch.bfloat16 and isa_level == "v4_bf16":
        tolerance += 2 * 2**-9
    assert_within_budget(ours, exact, (first, second), torch.randn(anchors), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("temperature", "normalize"), [(0.1, True), (0.01, True), (2.0, False)])
@pytest.mark.parametrize(("negatives", "direction"), MODES)
@pytest.mark.parametrize(("pairs", "d"), SHAPES)
def test_temperature_gradient(
    isa_level: str,
    pairs: int,
    d: int,
    negatives: str,
    direction: str,
    temperature: float,
    normalize: bool,
    dtype: torch.dtype,
) -> None:
    """It is a small difference of large sums: rounding their terms to a half type would show."""
    first, second = make(pairs, d, dtype)
    options = {"negatives": negatives, "direction": direction, "normalize": normalize, "reduction": "sum"}
    gradients = []
    for function, kind in ((nt_xent_loss, torch.float32), (reference.nt_xent_loss, torch.float64)):
        leaf = torch.tensor(temperature, dtype=torch.float32).to(kind).requires_grad_()
        rows = [x.to(dtype if kind == torch.float32 else kind) for x in (first, second)]
        (gradient,) = torch.autograd.grad(function(*rows, temperature=leaf, **options), leaf)
        gradients.append(float(gradient))
    # An anchor adds the difference of its positive's score and its negatives' mean, over the temperature. A score's
    # float32 rounding is a relative error of the weights in that mean.
    largest = 1.0 if normalize else max(float(x.double().square().sum(-1).max()) for x in (first, second))
    score = largest / temperature
    error = 4 * torch.finfo(torch.float32).eps * score
    assert abs(gradients[0] - gradients[1]) <= 2 * pairs * error * 2 * score / temperature


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("negatives", ["all", "cross_view"])
def test_accuracy_of_half_types(isa_level: str, negatives: str, dtype: torch.dtype) -> None:
    """Many rows: what the design promises, relative to the whole tensor."""
    inputs = make(1024, 64, dtype)
    results = []
    for function, rows in ((nt_xent_loss, inputs), (reference.nt_xent_loss, [x.double() for x in inputs])):
        results.append(with_gradients(lambda a, b, f=function: f(a, b, negatives=negatives), rows, torch.tensor(1.0)))
    (loss, *gradients), (exact, *exact_gradients) = results
    assert abs(float(loss) - float(exact)) <= 1e-5 * float(exact)
    for gradient, true in zip(gradients, exact_gradients, strict=True):
        rounded = true.to(dtype).double()
        assert (gradient.double() - true).norm() <= 2.5e-3 * true.norm()
        # The errors before the rounding and of the rounding are independent: their squares add up.
        before = (gradient.double() - true).square().sum() - (rounded - true).square().sum()
        assert before <= (1e-3 * true.norm()) ** 2


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scale_of_bfloat16_rows_does_not_matter(isa_level: str, scale: float) -> None:
    """Scaled by a power of two, the same rows: bit for bit where nothing overflows or vanishes on the way."""
    scale = 2.0 ** round(math.log2(scale))
    first, second = make(40, 17, torch.bfloat16)
    loss, first_grad, second_grad = with_gradients(nt_xent_loss, (first, second), torch.tensor(1.0))
    scaled = with_gradients(nt_xent_loss, (first * scale, second / scale), torch.tensor(1.0))
    torch.testing.assert_close(scaled[0], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(scaled[1].double() * scale, first_grad.double(), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(scaled[2].double() / scale, second_grad.double(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_zero_rows_and_what_is_not_finite(isa_level: str, dtype: torch.dtype) -> None:
    first, second = make(40, 17, dtype)
    first[3] = 0
    loss, first_grad, second_grad = with_gradients(nt_xent_loss, (first, second), torch.tensor(1.0))
    exact, *_ = with_gradients(nt_xent_loss, (first.double(), second.double()), torch.tensor(1.0))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert not first_grad[3].any()
    assert first_grad.isfinite().all()
    assert second_grad[3].any()
    for bad in (math.nan, math.inf, -math.inf):
        first[3, 2] = bad
        losses, *gradients = with_gradients(
            lambda a, b: nt_xent_loss(a, b, reduction="none", backend="cpu"), (first, second), torch.ones(80)
        )
        assert losses.isnan().all()
        assert all(gradient.isnan().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_dot_products_need_no_normalisation(isa_level: str, dtype: torch.dtype) -> None:
    first, second = make(70, 16, dtype)

    def ours(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent_loss(first, second, temperature=1.0, normalize=False, reduction="none", backend="cpu")

    def exact(first: Tensor, second: Tensor) -> Tensor:
        return reference.nt_xent_loss(first, second, 1.0, normalize=False, reduction="none")

    # Scores reach 50: their rounding is that much larger than a cosine's.
    assert_within_budget(ours, exact, (first, second), torch.randn(140), 100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_same_bits_again_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    inputs = make(700, 32, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(lambda a, b: nt_xent_loss(a, b, backend="cpu"), inputs, torch.tensor(1.0)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("negatives", "direction"), MODES)
def test_opcheck(negatives: str, direction: str, dtype: torch.dtype) -> None:
    first, second = (x.requires_grad_() for x in make(5, 4, dtype))
    temperature = torch.tensor(0.2, requires_grad=True)
    args = (first, second, 1.0, temperature, negatives, direction, True)

    torch.library.opcheck(torch.ops.cmi_fast.nt_xent_loss.default, args)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in args]
    losses, log_sum = torch.ops.cmi_fast.nt_xent_loss(*detached)
    torch.library.opcheck(
        torch.ops.cmi_fast.nt_xent_loss_backward.default,
        (torch.randn_like(losses), log_sum, *detached, True, True, True),
    )


def test_second_derivative_is_refused() -> None:
    first, second = make(5, 4, torch.float32)
    loss = nt_xent_loss(first.requires_grad_(), second, backend="cpu")
    (gradient,) = torch.autograd.grad(loss, first, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_backward_returns_only_what_is_wanted(wanted: tuple[bool, bool, bool]) -> None:
    first, second = make(40, 6, torch.float64)
    options = (first, second, 0.1, None, "all", "both", True)
    losses, log_sum = torch.ops.cmi_fast.nt_xent_loss(*options)
    args = (torch.randn_like(losses), log_sum, *options)
    everything = torch.ops.cmi_fast.nt_xent_loss_backward(*args, True, True, True)
    for gradient, full, want in zip(
        torch.ops.cmi_fast.nt_xent_loss_backward(*args, *wanted), everything, wanted, strict=True
    ):
        assert torch.equal(gradient, full) if want else gradient.numel() == 0
