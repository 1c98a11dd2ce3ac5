"""The compiled nt_xent_loss: error budget at every tile edge and ISA level, determinism, memory, registration."""

from __future__ import annotations

import pytest
import torch
from checking import assert_within_budget, needs_native, with_gradients
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import nt_xent_loss

pytestmark = needs_native

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_dot_products_need_no_normalisation(isa_level: str, dtype: torch.dtype) -> None:
    first, second = make(70, 16, dtype)

    def ours(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent_loss(first, second, temperature=1.0, normalize=False, reduction="none", backend="cpu")

    def exact(first: Tensor, second: Tensor) -> Tensor:
        return reference.nt_xent_loss(first, second, 1.0, normalize=False, reduction="none")

    # Scores reach 50: their rounding is that much larger than a cosine's.
    assert_within_budget(ours, exact, (first, second), torch.randn(140), 100 * torch.finfo(dtype).eps)


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    inputs = make(700, 32, torch.float32)
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


@pytest.mark.parametrize(("negatives", "direction"), MODES)
def test_opcheck(negatives: str, direction: str) -> None:
    first, second = (x.requires_grad_() for x in make(5, 4, torch.float32))
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
