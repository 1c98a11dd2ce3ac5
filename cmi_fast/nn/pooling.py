"""Pooling layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmi_fast import functional


class SoftAssignmentPooling(nn.Module):
    """m interests from a sequence of item vectors, by soft assignment to m learned categories (Eq. 1-3).

    Args:
        categories: m, how many categories are learned and interests returned.
        dim: d.
        temperature: of the assignment (the paper's epsilon).
        backend: as in :func:`cmi_fast.functional.soft_assignment_pool`.

    The parameter ``categories`` [m, d] starts uniform in +-1/sqrt(d), as all of the paper's parameters.
    """

    def __init__(self, categories: int, dim: int, temperature: float = 0.1, backend: str = "auto") -> None:
        super().__init__()
        self.categories = nn.Parameter(torch.empty(categories, dim))
        self.temperature = temperature
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.categories.shape[1] ** -0.5
        nn.init.uniform_(self.categories, -bound, bound)

    def forward(
        self,
        items: Tensor,
        lengths: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Tensor:
        """Interests [B, m, d] of items [B, L, d] with ``lengths`` [B], or [T, d] with ``offsets`` [B + 1]."""
        return functional.soft_assignment_pool(
            items,
            self.categories,
            lengths,
            offsets=offsets,
            temperature=self.temperature,
            views=views,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        categories, dim = self.categories.shape
        return f"categories={categories}, dim={dim}, temperature={self.temperature}, backend={self.backend!r}"
