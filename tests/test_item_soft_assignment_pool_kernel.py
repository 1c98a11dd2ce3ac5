"""The compiled item_soft_assignment_pool: error budget, the table's gradient, determinism, registration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checking import (
    assert_within_budget,
    needs_native,
    pool_in_long_double,
    rounding,
    to_jagged,
    with_gradients,
)
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import item_soft_assignment_pool, soft_assignment_pool
from cmi_fast.ops.checks import FLOATING

pytestmark = needs_native

# B, L, m, d, V: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, 4, id="odd"),
    pytest.param(3, 16, 8, 64, 5000, id="aligned-few-repeats"),
    pytest.param(2, 33, 9, 65, 3, id="one-past-a-tile-many-repeats"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(4, 40, 64, 20, 30, id="many-categories"),
    pytest.param(70, 30, 8, 200, 1500, id="several-parts-wide"),
]


def make(
    batch: int, length: int, m: int, d: int, table_rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.randint(0, table_rows, (batch, length))
    lengths = torch.randint(0, length + 1, (batch,))
    return ids, torch.randn(table_rows, d, dtype=dtype), torch.randn(m, d, dtype=dtype), lengths


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("view_count", [0, 3], ids=["one-view", "views"])
@pytest.mark.parametrize(("batch", "length", "m", "d", "table_rows"), SHAPES)
def test_error_budget(
    isa_level: str,
    batch: int,
    length: int,
    m: int,
    d: int,
    table_rows: int,
    view_count: int,
    jagged: bool,
    dtype: torch.dtype,
) -> None:
    ids, table, categories, lengths = make(batch, length, m, d, table_rows, dtype)
    views = torch.rand(view_count, batch, length) < 0.4 if view_count else None  # some rows are in no view
    beyond = torch.arange(length) >= lengths[:, None]
    shape = (batch, m, d) if views is None else (view_count, batch, m, d)
    cotangent = torch.randn(shape, dtype=dtype)
    truth = None
    if dtype == torch.float64:
        member = torch.ones(1, batch, length, dtype=torch.bool) if views is None else views
        read = ids[~beyond]
        pooled, rows_grad, categories_grad = pool_in_long_double(
            table[read], categories, (~beyond).nonzero()[:, 0], member[:, ~beyond], cotangent.view(-1, batch, m, d)
        )
        table_grad = np.zeros(table.shape, np.longdouble)
        np.add.at(table_grad, read.numpy(), rows_grad)
        truth = [pooled.reshape(shape), table_grad, categories_grad]
    ids[beyond] = -(2**40)
    offsets = None
    if jagged:
        ids, offsets = to_jagged(ids, lengths)
        lengths, views = None, None if views is None else views[:, ~beyond]

    def ours(table: Tensor, categories: Tensor) -> Tensor:
        return item_soft_assignment_pool(ids, table, categories, lengths, offsets=offsets, views=views, backend="cpu")

    def exact(table: Tensor, categories: Tensor) -> Tensor:
        return reference.item_soft_assignment_pool(ids, table, categories, lengths, offsets, views=views)

    assert_within_budget(ours, exact, [table, categories], cotangent, rounding(dtype), truth)


@pytest.mark.usefixtures("poisoned")
def test_a_gradient_too_large_for_the_caches(isa_level: str) -> None:
    ids, table, categories, lengths = make(300, 100, 4, 64, 20_000, torch.float32)
    assert table.nbytes > 4 * 2**20
    assert_within_budget(
        lambda t, g: item_soft_assignment_pool(ids, t, g, lengths, backend="cpu"),
        lambda t, g: reference.item_soft_assignment_pool(ids, t, g, lengths),
        (table, categories),
        torch.randn(300, 4, 64),
        rounding(torch.float32),
    )


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_rows_not_the_table(isa_level: str, dtype: torch.dtype, autocast: torch.dtype) -> None:
    ids, table, categories, lengths = make(3, 20, 8, 33, 11, dtype)
    cotangent = torch.randn(3, 8, 33)

    def ours(table: Tensor, categories: Tensor) -> Tensor:
        with torch.autocast("cpu", autocast):
            return item_soft_assignment_pool(ids, table, categories, lengths, backend="cpu")

    def gathered(table: Tensor, categories: Tensor) -> Tensor:
        rows = F.embedding(ids, table.float()).to(autocast)
        return soft_assignment_pool(rows, categories.to(autocast), lengths, backend="cpu")

    results, expected = (with_gradients(pool, (table, categories), cotangent) for pool in (ours, gathered))
    assert results[0].dtype == autocast
    assert torch.equal(results[0], expected[0])
    assert results[1].dtype == dtype
    # The gathered rows' gradients are rounded to the autocast type before they are summed, ours are not.
    for our, their in zip(results[1:], expected[1:], strict=True):
        scale = their.abs().max()
        assert (our.double() - their.double()).abs().max() <= 4 * torch.finfo(autocast).eps * scale.double()


def test_float64_beside_a_half_type_takes_the_reference() -> None:
    ids, table, categories, lengths = make(3, 4, 2, 5, 11, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert item_soft_assignment_pool(ids, table, categories.float(), lengths).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="no kernel for float64 beside another dtype"):
            item_soft_assignment_pool(ids, table, categories.float(), lengths, backend="cpu")


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    ids, table, categories, lengths = make(400, 50, 8, 64, 3000, torch.float32)
    views = torch.rand(3, 400, 50) < 0.5
    cotangent = torch.randn(3, 400, 8, 64)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(
                with_gradients(
                    lambda t, g: item_soft_assignment_pool(ids, t, g, lengths, views=views, backend="cpu"),
                    (table, categories),
                    cotangent,
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_rows_of_a_large_table(isa_level: str) -> None:
    """Ids beyond what the sort takes in one digit, or two."""
    table = torch.randn(5_000_000, 2, dtype=torch.float64)
    ids = torch.tensor([[4_999_999, 0, 2048, 4_999_999], [2047, 2_000_000, 4096, 1]])
    cotangent = torch.randn(2, 3, 2, dtype=torch.float64)
    categories = torch.randn(3, 2, dtype=torch.float64)
    _, ours, _ = with_gradients(
        lambda t, g: item_soft_assignment_pool(ids, t, g, backend="cpu"), (table, categories), cotangent
    )
    _, rows, _ = with_gradients(lambda v, g: soft_assignment_pool(v, g), (table[ids], categories), cotangent)
    touched = ids.unique()
    expected = torch.zeros(len(touched), 2, dtype=torch.float64)
    expected.index_add_(0, torch.searchsorted(touched, ids.flatten()), rows.flatten(0, 1))
    torch.testing.assert_close(ours[touched], expected)
    assert ours.count_nonzero() == 2 * len(touched)


@pytest.mark.parametrize("with_views", [False, True], ids=["one-view", "views"])
def test_opcheck(with_views: bool) -> None:
    ids, table, categories, lengths = make(3, 6, 4, 5, 11, torch.float32)
    views = torch.rand(2, 3, 6) < 0.5 if with_views else None
    temperature = torch.tensor(0.2, requires_grad=True)
    args = (ids, table.requires_grad_(), categories.requires_grad_(), lengths, None, views, 1.0, temperature)
    torch.library.opcheck(torch.ops.cmi_fast.item_soft_assignment_pool.default, args)
    detached = [x.detach() if isinstance(x, Tensor) else x for x in args]
    torch.library.opcheck(
        torch.ops.cmi_fast.item_soft_assignment_pool_backward.default,
        (torch.randn(2, 3, 4, 5) if with_views else torch.randn(3, 4, 5), *detached, True, True, True),
    )


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_backward_returns_only_what_is_wanted(wanted: tuple[bool, bool, bool]) -> None:
    ids, table, categories, lengths = make(3, 6, 4, 5, 11, torch.float64)
    args = (torch.randn(3, 4, 5, dtype=torch.float64), ids, table, categories, lengths, None, None, 0.1, None)
    everything = torch.ops.cmi_fast.item_soft_assignment_pool_backward(*args, True, True, True)
    for gradient, full, want in zip(
        torch.ops.cmi_fast.item_soft_assignment_pool_backward(*args, *wanted), everything, wanted, strict=True
    ):
        assert torch.equal(gradient, full) if want else gradient.numel() == 0


def test_second_derivative_of_the_kernel_is_refused() -> None:
    ids, table, categories, lengths = make(2, 3, 3, 4, 5, torch.float64)
    pooled = item_soft_assignment_pool(ids, table.requires_grad_(), categories, lengths, backend="cpu")
    (gradient,) = torch.autograd.grad(pooled.square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_nan_of_one_row_stays_with_its_sequences() -> None:
    ids, table, categories, _ = make(3, 6, 4, 5, 11, torch.float32)
    ids[ids == 7] = 6
    ids[1, 2] = 7
    table[7, 0] = math.nan
    pooled = item_soft_assignment_pool(ids, table, categories, backend="cpu")
    assert pooled.isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_a_compiled_graph_checks_ids_in_the_operator() -> None:
    table, categories = torch.randn(5, 4), torch.randn(3, 4)
    compiled = torch.compile(
        lambda ids: item_soft_assignment_pool(ids, table, categories, backend="cpu"),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(RuntimeError, match=r"ids: expected a value in \[0, 5\), found 9 in sequence 1"):
        compiled(torch.tensor([[0, 1], [2, 9]]))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_opcheck_of_some_gradients(wanted: tuple[bool, bool, bool]) -> None:
    ids, table, categories, lengths = make(3, 6, 4, 5, 11, torch.bfloat16)
    args = (ids, table, categories, lengths, None, None, 1.0, torch.tensor(0.2))
    cotangent = torch.randn(3, 4, 5).bfloat16()
    torch.library.opcheck(torch.ops.cmi_fast.item_soft_assignment_pool_backward.default, (cotangent, *args, *wanted))
