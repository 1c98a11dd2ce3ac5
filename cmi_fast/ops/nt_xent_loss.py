"""``nt_xent_loss``: the contrastive loss between two views of the same interests (Eq. 6)."""

from __future__ import annotations

from torch import Tensor

from cmi_fast import _native, reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.backend import choose_backend, goes_straight_to_cpu
from cmi_fast.ops.checks import (
    FLOATING,
    FP32_PRECISIONS,
    REDUCTIONS,
    check_choice,
    check_not_empty,
    check_same,
    check_shape,
    check_temperature,
    check_tensor,
)
from cmi_fast.ops.register_operator import register_operator
from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.registration import register_triton_operator

NEGATIVES = ("all", "cross_view")
DIRECTIONS = ("both", "first")
LEAST_TEMPERATURE = 1e-5


def nt_xent_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    negatives: str = "all",
    direction: str = "both",
    normalize: bool = True,
    reduction: str = "mean",
    fp32_precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    r"""Tell each row's other view from all other rows: normalised temperature-scaled cross-entropy (Eq. 6).

    Row i of ``first`` and row i of ``second`` are the two views of one thing, each the positive of the other. With
    the 2N unit rows :math:`z`, an anchor i, its positive p(i) and its negatives :math:`N_i` lose

    .. math:: \ell_i = -\log \frac{e^{s_{i p(i)}}}{e^{s_{i p(i)}} + \sum_{j \in N_i} e^{s_{ij}}}, \qquad
              s_{ij} = z_i \cdot z_j / \text{temperature}.

    ================  ==============================================  ====================================
    ``negatives``     negatives of an anchor                          also known from
    ================  ==============================================  ====================================
    ``"all"``         2N - 2: all rows of both views but the pair's   Eq. 6, 2(m|B| - 1); SimCLR, lightly
    ``"cross_view"``  N - 1: the other view's rows but the positive   CLIP, DSSRec, the CMI authors' code
    ================  ==============================================  ====================================

    The mean runs over anchors, as in SimCLR and lightly. **The paper's L_cl, averaged over pairs, is twice this
    value**: its weight multiplies ``2 * nt_xent_loss(...)``.

    Args:
        first: [N, d], or [B, m, d] whose row b * m + k is interest k of user b.
        second: the other view, of the same shape.
        temperature: at least 1e-5; a 0-d tensor gets its gradient.
        negatives: ``"all"`` or ``"cross_view"``, see above.
        direction: ``"both"``, the anchors are the rows of both views; ``"first"``, those of ``first`` alone; the
            negatives of an anchor are the same either way.
        normalize: scale rows to unit length; ``False`` takes plain dot products (DSSRec).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        fp32_precision: of matrix products of float32 in the Triton kernels: ``"ieee"``, or ``"tf32"``, which rounds
            factors to 11 significant bits for a GPU's tensor cores. Other backends compute IEEE products either way.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"`` (never run on a GPU yet, and never
            taken by ``"auto"``). The kernels need memory of the size of the rows, never of N x N.

    Returns:
        The loss, a scalar; with ``reduction="none"`` [2N], the anchors of ``first``, then of ``second``
        (``direction="first"``: [N]). float32 for half inputs, else the inputs' dtype. Without negatives (N = 1) it is
        zero. A zero row counts as the zero vector and gets a zero gradient.

    Raises:
        TypeError: a dtype is not floating, or not shared.
        ValueError: a shape, temperature, option or backend does not fit; the message names it.
    """
    options = negatives, direction, normalize
    usual = type(temperature) is float and LEAST_TEMPERATURE <= temperature <= 1 and reduction in REDUCTIONS
    if (
        usual
        and fp32_precision == "ieee"
        and goes_straight_to_cpu(backend, (first, second))
        and first.shape == second.shape
        and first.ndim in (2, 3)
    ):
        try:
            rows = (first, second) if first.ndim == 2 else (first.flatten(0, 1), second.flatten(0, 1))
            return _nt_xent_loss(*rows, temperature, None, *options, reduction=reduction)
        except RuntimeError:
            pass  # the checks below say in the caller's terms what was wrong, or find what can run
    check_tensor("first", first, "[N, d] or [B, m, d]")
    check_tensor("second", second, "[N, d] or [B, m, d]")
    first, second = cast_for_autocast(first, second)
    check_same("first", first, second=second)
    check_shape("second", second, first.shape, "as first")
    check_not_empty("first", first, "[N, d] or [B, m, d]")
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("direction", direction, DIRECTIONS)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("fp32_precision", fp32_precision, FP32_PRECISIONS)
    number, tensor = check_temperature(temperature, first, least=LEAST_TEMPERATURE)
    chosen = choose_backend(backend, "nt_xent_loss", first, cpu=FLOATING)
    if chosen == "reference":
        with without_autocast(first.device):
            temperature = number if tensor is None else tensor
            return reference.nt_xent_loss(first, second, temperature, *options, reduction)
    inputs = first.flatten(0, -2), second.flatten(0, -2), number, tensor, *options
    if chosen == "triton":
        return _triton_nt_xent_loss(*inputs, fp32_precision, reduction=reduction)
    return _nt_xent_loss(*inputs, reduction=reduction)


def _fake(
    first: Tensor,
    second: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    negatives: str,
    direction: str,
    normalize: bool,
    fp32_precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    pairs, dtype = first.shape[0], accumulation_type(first.dtype)
    anchors = 2 * pairs if direction == "both" else pairs
    return first.new_empty(anchors, dtype=dtype), first.new_empty(2 * pairs, dtype=dtype)


if _native.available:
    _nt_xent_loss = register_operator("cmi_fast", "nt_xent_loss", fake=_fake, differentiable=(0, 1, 3))

_triton_nt_xent_loss = register_triton_operator(
    "nt_xent_loss",
    "Tensor first, Tensor second, float temperature, Tensor? temperature_tensor, str negatives, str direction, "
    "bool normalize, str fp32_precision",
    outputs=2,
    differentiable=(0, 1, 3),
    fake=_fake,
)
