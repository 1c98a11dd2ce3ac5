"""Losses as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cmi_fast import functional


def _set_temperature(module: nn.Module, temperature: float | Tensor) -> None:
    """A parameter is registered by being set. Other tensors become buffers, which no checkpoint needs."""
    if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
        module.register_buffer("temperature", temperature, persistent=False)
    else:
        module.temperature = temperature  # type: ignore[assignment]


class NTXentLoss(nn.Module):
    """lightly's ``NTXentLoss``: the contrastive loss of SimCLR, same value and gradient, in O(N d) memory where fused.

    Args:
        temperature: as in :func:`cmi_fast.functional.nt_xent_loss`; an ``nn.Parameter`` is learned, any other tensor
            moves with the module.
        memory_bank_size: 0, the only size supported.
        gather_distributed: False, the only value supported.
        negatives, direction, normalize, reduction, fp32_precision, backend: as in
            :func:`cmi_fast.functional.nt_xent_loss`.

    Raises:
        ValueError: a memory bank or a gather over processes is asked for.
    """

    temperature: float | Tensor

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        negatives: str = "all",
        direction: str = "both",
        normalize: bool = True,
        reduction: str = "mean",
        fp32_precision: str = "ieee",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if memory_bank_size != 0:
            raise ValueError(f"memory_bank_size: a memory bank is not supported, expected 0, found {memory_bank_size}")
        if gather_distributed:
            raise ValueError("gather_distributed: gathering over processes is not supported, expected False")
        _set_temperature(self, temperature)
        self.negatives = negatives
        self.direction = direction
        self.normalize = normalize
        self.reduction = reduction
        self.fp32_precision = fp32_precision
        self.backend = backend

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views [N, d] or [B, m, d] of the same rows."""
        return functional.nt_xent_loss(
            out0,
            out1,
            temperature=self.temperature,
            negatives=self.negatives,
            direction=self.direction,
            normalize=self.normalize,
            reduction=self.reduction,
            fp32_precision=self.fp32_precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={_number(self.temperature):g}, negatives={self.negatives!r}, direction={self.direction!r}, "
            f"normalize={self.normalize}, reduction={self.reduction!r}, fp32_precision={self.fp32_precision!r}, "
            f"backend={self.backend!r}"
        )


class InterestSoftmaxLoss(nn.Module):
    """Cross-entropy over candidates scored by a user's best interest (Eq. 7).

    Args:
        temperature: as in :func:`cmi_fast.functional.interest_softmax_loss`; an ``nn.Parameter`` is learned, any other
            tensor moves with the module.
        reduction, fp32_precision, backend: as in :func:`cmi_fast.functional.interest_softmax_loss`.
    """

    temperature: float | Tensor

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        fp32_precision: str = "ieee",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _set_temperature(self, temperature)
        self.reduction = reduction
        self.fp32_precision = fp32_precision
        self.backend = backend

    def forward(
        self,
        interests: Tensor,
        candidates: Tensor,
        targets: Tensor,
        general: Tensor | None = None,
        *,
        candidate_bias: Tensor | None = None,
        exclude: Tensor | None = None,
        candidate_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of interests [B, m, d] whose positives are the rows ``targets`` [B] of candidates [C, d]."""
        return functional.interest_softmax_loss(
            interests,
            candidates,
            targets,
            general,
            temperature=self.temperature,
            candidate_bias=candidate_bias,
            exclude=exclude,
            candidate_ids=candidate_ids,
            reduction=self.reduction,
            fp32_precision=self.fp32_precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={_number(self.temperature):g}, reduction={self.reduction!r}, "
            f"fp32_precision={self.fp32_precision!r}, backend={self.backend!r}"
        )


def _number(temperature: float | Tensor) -> float:
    return float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
