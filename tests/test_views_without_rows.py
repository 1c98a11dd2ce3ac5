"""Views of sequences without any row: every shape, of outputs and gradients, and nothing written beyond them."""

from __future__ import annotations

import pytest
import torch
from checking import WITH_CUDA, with_gradients
from torch import Tensor

from cmi_fast.functional import item_soft_assignment_pool, soft_assignment_pool


@pytest.mark.parametrize("backend", WITH_CUDA)
@pytest.mark.parametrize("view_count", [1, 3, 8])
@pytest.mark.parametrize(
    ("shape", "offsets"),
    [((4, 0), None), ((0, 5), None), ((0, 0), None), ((0,), torch.zeros(5, dtype=torch.int64)), ((0,), torch.zeros(1))],
    ids=["no-length", "no-batch", "neither", "jagged", "jagged-no-batch"],
)
def test_views_without_rows(backend: str, view_count: int, shape: tuple[int, ...], offsets: Tensor | None) -> None:
    offsets = None if offsets is None else offsets.long()
    views = torch.ones(view_count, *shape, dtype=torch.bool)
    batch = shape[0] if offsets is None else len(offsets) - 1
    categories, table = torch.randn(9, 7), torch.randn(3, 7)
    expected = (view_count, batch, 9, 7)
    for _ in range(5):  # a write beyond the end shows up by and by
        results = with_gradients(
            lambda v, g: soft_assignment_pool(v, g, offsets=offsets, views=views, backend=backend),
            (torch.zeros(*shape, 7), categories),
            torch.randn(expected),
        )
        assert results[0].shape == expected
        assert not any(result.any() for result in results)
        ids = torch.zeros(shape, dtype=torch.int64)
        results = with_gradients(
            lambda t, g, ids=ids: item_soft_assignment_pool(ids, t, g, offsets=offsets, views=views, backend=backend),
            (table, categories),
            torch.randn(expected),
        )
        assert results[0].shape == expected
        assert not any(result.any() for result in results)
