"""``fp32_precision``: TensorFloat-32 by explicit choice, for the tensor cores of a GPU and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checking import needs_native, needs_triton, with_gradients
from torch import Tensor

from cmi_fast.functional import interest_softmax_loss, nt_xent_loss

Loss = Callable[..., Tensor]


def contrastive(first: Tensor, second: Tensor, **options: str) -> Tensor:
    return nt_xent_loss(first, second, **options)


def main(interests: Tensor, candidates: Tensor, **options: str) -> Tensor:
    return interest_softmax_loss(interests, candidates, torch.tensor([0, 2]), **options)


LOSSES = [
    pytest.param(contrastive, ((5, 7), (5, 7)), id="nt_xent_loss"),
    pytest.param(main, ((2, 3, 7), (5, 7)), id="interest_softmax_loss"),
]


def results(loss: Loss, shapes: tuple[tuple[int, ...], ...], **options: str) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    return with_gradients(lambda *x: loss(*x, **options), inputs, torch.tensor(1.0))


@pytest.mark.parametrize(("loss", "shapes"), LOSSES)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_other_backends_compute_the_same_bits(loss: Loss, shapes: tuple[tuple[int, ...], ...], backend: str) -> None:
    exact = results(loss, shapes, backend=backend)
    for ours, expected in zip(results(loss, shapes, backend=backend, fp32_precision="tf32"), exact, strict=True):
        assert torch.equal(ours, expected)


@needs_triton
@pytest.mark.parametrize(("loss", "shapes"), LOSSES)
def test_triton_takes_it(monkeypatch: pytest.MonkeyPatch, loss: Loss, shapes: tuple[tuple[int, ...], ...]) -> None:
    """The interpreter computes exactly either way; that GPUs get it is seen where kernels are compiled."""
    from cmi_fast.triton import interest_softmax_loss as softmax_kernels
    from cmi_fast.triton import nt_xent_loss as contrastive_kernels

    precisions: list[str] = []
    for module in (softmax_kernels, contrastive_kernels):
        launch = module.launch

        def watch(*arguments: object, launch: Callable[..., None] = launch, **constants: object) -> None:
            if "TILE" in constants:
                precisions.append(constants["TILE"].FP32_PRECISION)  # type: ignore[attr-defined]
            launch(*arguments, **constants)

        monkeypatch.setattr(module, "launch", watch)
    exact = results(loss, shapes, backend="triton")
    assert set(precisions) == {"ieee"}
    precisions.clear()
    torch.testing.assert_close(results(loss, shapes, backend="triton", fp32_precision="tf32"), exact)
    assert set(precisions) == {"tf32"}


@pytest.mark.parametrize(("loss", "shapes"), LOSSES)
def test_names_what_it_expects(loss: Loss, shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"fp32_precision: expected .*ieee.*tf32.*'bf16'"):
        results(loss, shapes, fp32_precision="bf16")
