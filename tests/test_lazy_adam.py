"""The lazy optimiser: each row of a table an Adam of its own; and the one gradient of the table it is fed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmi_fast.models.cmi import CMI
from cmi_fast.training.lazy_adam import LazyAdam
from cmi_fast.training.trainer import loss_of_rows


def test_a_row_is_an_adam_whose_steps_are_the_batches_it_is_in() -> None:
    """Against torch's Adam on each row alone, in float64; a row of no batch stays as it is."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(7, 3, dtype=torch.float64, generator=generator))
    alone = [nn.Parameter(row.clone()) for row in table.detach()]
    adams = [torch.optim.Adam([row], lr=0.1) for row in alone]
    lazy = LazyAdam([table], lr=0.1)
    for step in range(30):
        rows = torch.randperm(6, generator=generator)[: 1 + step % 5]
        gradient = torch.randn(len(rows), 3, dtype=torch.float64, generator=generator)
        table.grad = torch.sparse_coo_tensor(rows[None], gradient, table.shape)
        lazy.step()
        for row, values in zip(rows.tolist(), gradient, strict=True):
            alone[row].grad = values
            adams[row].step()
    torch.testing.assert_close(table.detach(), torch.stack([row.detach() for row in alone]), rtol=1e-12, atol=0)


def test_a_row_named_twice_in_a_gradient_is_one_update() -> None:
    first, second = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    once, twice = LazyAdam([first]), LazyAdam([second])
    for _ in range(3):
        first.grad = torch.sparse_coo_tensor([[1]], torch.tensor([[3.0, -1.0]]), (3, 2))
        second.grad = torch.sparse_coo_tensor([[1, 1]], torch.tensor([[1.0, 1.0], [2.0, -2.0]]), (3, 2))
        once.step()
        twice.step()
    assert torch.equal(first, second)


def test_parameters_without_sparse_gradients_have_plain_adam() -> None:
    first, second, table = (nn.Parameter(torch.ones(3, 2)) for _ in range(3))
    lazy, adam = LazyAdam([table, first], lr=0.01, fused=True), torch.optim.Adam([second], lr=0.01, fused=True)
    for step in range(4):
        first.grad = torch.full((3, 2), float(step))
        second.grad = first.grad.clone()
        table.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2))
        lazy.step()
        adam.step()
    assert torch.equal(first, second)
    assert not torch.equal(table[0], torch.ones(2)) and torch.equal(table[1:], torch.ones(2, 2))


@pytest.mark.parametrize("sparse", [False, True])
def test_one_gradient_from_the_distinct_rows_is_that_of_the_whole_table(sparse: bool) -> None:
    torch.manual_seed(0)
    model = CMI(50, interests=3, dim=8, frequency=torch.rand(50) + 0.1, backend="reference").double()
    history, lengths = torch.randint(5, 30, (6, 9)), torch.randint(1, 10, (6,))
    views = torch.rand(2, 6, 9) < 0.6
    positives, negatives = torch.randint(20, 40, (6,)), torch.randint(20, 40, (6,))
    inside = torch.arange(9) < lengths[:, None]
    rows = torch.cat([history[inside], positives, negatives]).unique()
    place = torch.zeros(50, dtype=torch.int64)
    place[rows] = torch.arange(len(rows))

    expected = torch.stack(model.loss(history, lengths, views, positives, negatives))
    wanted = torch.autograd.grad(expected[0], list(model.parameters()))
    items = (place[history] * inside, lengths, views, place[positives], place[negatives])
    found = torch.stack(loss_of_rows(model, rows, *items, sparse_grad=sparse))
    found[0].backward()
    torch.testing.assert_close(found, expected)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.is_sparse == (sparse and parameter is model.items)
        torch.testing.assert_close(parameter.grad.to_dense(), gradient)
    if sparse:
        assert torch.equal(model.items.grad.coalesce().indices()[0], rows)  # type: ignore[union-attr]
