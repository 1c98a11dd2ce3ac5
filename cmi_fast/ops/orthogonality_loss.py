"""``orthogonality_loss``: keeps the latent categories apart (Eq. 4)."""

from __future__ import annotations

from torch import Tensor

from cmi_fast import reference
from cmi_fast.ops.autocast import cast_for_autocast, without_autocast
from cmi_fast.ops.checks import check_not_empty, check_tensor


def orthogonality_loss(categories: Tensor) -> Tensor:
    r"""How far the categories are from being orthogonal: :math:`\sum_{i \ne j} (\hat g_i \cdot \hat g_j)^2` (Eq. 4).

    Zero for orthogonal categories, m(m - 1) for parallel ones. Every pair counts twice, as in the paper. Plain PyTorch
    on every device: m is small.

    Args:
        categories: [m, d]; :math:`\hat g_i` are its rows at unit length.

    Returns:
        The loss, a scalar: float32 for half inputs, else the dtype of ``categories``. A zero row counts as the zero
        vector and gets a zero gradient.

    Raises:
        TypeError: the dtype is not floating.
        ValueError: the shape does not fit.
    """
    check_tensor("categories", categories, "[m, d]")
    check_not_empty("categories", categories, "[m, d]")
    (categories,) = cast_for_autocast(categories)
    with without_autocast(categories.device):
        return reference.orthogonality_loss(categories)
