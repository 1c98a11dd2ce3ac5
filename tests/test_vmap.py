"""vmap over what is otherwise checked by value: the operators take the reference there, and look at no value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    soft_assignment_pool,
)

ITEMS, CATEGORIES = torch.randn(2, 3, 5), torch.randn(4, 5)


@pytest.mark.parametrize(
    ("function", "batched"),
    [
        (lambda n: soft_assignment_pool(ITEMS, CATEGORIES, n), torch.tensor([[1, 2], [0, 3]])),
        (lambda t: soft_assignment_pool(ITEMS, CATEGORIES, temperature=t), torch.tensor([0.1, 0.3])),
        (lambda i: item_soft_assignment_pool(i, CATEGORIES, CATEGORIES), torch.tensor([[[1, 2]], [[0, 3]]])),
        (lambda t: nt_xent_loss(ITEMS, ITEMS + 1, temperature=t), torch.tensor([0.1, 0.3])),
        (lambda t: interest_softmax_loss(ITEMS, CATEGORIES, t), torch.tensor([[1, 2], [0, 3]])),
    ],
    ids=["lengths", "temperature", "ids", "temperature-of-nt-xent", "targets"],
)
def test_vmap(function: Callable[[Tensor], Tensor], batched: Tensor) -> None:
    torch.testing.assert_close(torch.vmap(function)(batched), torch.stack([function(x) for x in batched]))
