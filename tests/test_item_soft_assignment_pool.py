"""item_soft_assignment_pool: the pooling of gathered rows, and what is its own: ids, tables, sparse gradients."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checking import WITH_CUDA, pool_literally, refuses_cuda, to_jagged, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast import functional
from cmi_fast.functional import soft_assignment_pool

item_soft_assignment_pool = functional.item_soft_assignment_pool
V = 11


@pytest.fixture(autouse=True, params=["auto" if backend == "cpu" else backend for backend in WITH_CUDA])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file, for each backend."""
    monkeypatch.setitem(
        globals(), "item_soft_assignment_pool", partial(functional.item_soft_assignment_pool, backend=request.param)
    )
    return request.param


def make(
    batch: int, length: int, m: int, d: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, table, categories, lengths; few items, so that sequences repeat them and share them."""
    ids = torch.randint(0, V, (batch, length))
    lengths = torch.randint(0, length + 1, (batch,))
    return ids, torch.randn(V, d, dtype=dtype), torch.randn(m, d, dtype=dtype), lengths


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_equals_the_equations(index: torch.dtype) -> None:
    ids, table, categories, lengths = make(3, 6, 4, 5)
    pooled = item_soft_assignment_pool(ids.to(index), table, categories, lengths.to(index), temperature=0.3)
    torch.testing.assert_close(pooled, pool_literally(table[ids], categories, lengths, 0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_views", [False, True], ids=["one", "views"])
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_equals_pooling_the_gathered_rows(jagged: bool, with_views: bool, sparse_grad: bool) -> None:
    ids, table, categories, lengths = make(4, 6, 3, 5)
    views = torch.rand(3, 4, 6) < 0.5 if with_views else None
    options = {"lengths": lengths, "views": views}
    if jagged:
        inside = torch.arange(6) < lengths[:, None]
        (ids, offsets), views = to_jagged(ids, lengths), None if views is None else views[:, inside]
        options = {"offsets": offsets, "views": views}

    def ours(table: Tensor, categories: Tensor) -> Tensor:
        return item_soft_assignment_pool(ids, table, categories, **options, sparse_grad=sparse_grad)

    def theirs(table: Tensor, categories: Tensor) -> Tensor:
        return soft_assignment_pool(F.embedding(ids, table), categories, **options)

    cotangent = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = with_gradients(theirs, (table, categories), cotangent.expand(3, -1, -1, -1) if with_views else cotangent)
    results = with_gradients(ours, (table, categories), cotangent.expand_as(expected[0]))
    assert results[1].is_sparse == sparse_grad
    for our, their in zip(results, expected, strict=True):
        torch.testing.assert_close(our.to_dense() if our.is_sparse else our, their)


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize(("batch", "length", "m", "d"), [(2, 5, 3, 4), (1, 1, 1, 1)])
def test_gradcheck(backend: str, jagged: bool, batch: int, length: int, m: int, d: int) -> None:
    ids, table, categories, lengths = make(batch, length, m, d)
    options = {"lengths": lengths}
    if jagged:
        ids, offsets = to_jagged(ids, lengths)
        options = {"offsets": offsets}
    temperature = torch.tensor(0.4, dtype=torch.float64)
    cotangent = torch.randn(batch, m, d, dtype=torch.float64)

    def pooled(table: Tensor, categories: Tensor, temperature: Tensor) -> Tensor:
        return (item_soft_assignment_pool(ids, table, categories, **options, temperature=temperature) * cotangent).sum()

    inputs = [x.requires_grad_() for x in (table, categories, temperature)]
    # The interpreter takes its time: there, along one random direction.
    assert torch.autograd.gradcheck(pooled, inputs, fast_mode=backend == "triton")


def test_second_derivatives_of_the_reference() -> None:
    ids, table, categories, lengths = make(2, 3, 2, 2)
    pool = partial(functional.item_soft_assignment_pool, ids % 3, lengths=lengths, temperature=0.5, backend="reference")
    assert torch.autograd.gradgradcheck(
        lambda table, categories: pool(table, categories), (table[:3].requires_grad_(), categories.requires_grad_())
    )


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_ids_beyond_a_length_are_never_read(sparse_grad: bool) -> None:
    ids, table, categories, lengths = make(4, 6, 3, 5)
    pool = partial(item_soft_assignment_pool, lengths=lengths, sparse_grad=sparse_grad)
    expected = pool(ids, table, categories)
    beyond = torch.arange(6) >= lengths[:, None]
    for anything in (-1, V, 2**40):
        torch.testing.assert_close(pool(ids.masked_fill(beyond, anything), table, categories), expected)
    # Not even the value that stands in for them: a row of the table that no sequence holds may be NaN.
    unused = torch.cat([torch.full((1, 5), math.nan, dtype=torch.float64), table])
    results = with_gradients(partial(pool, ids + 1), (unused, categories), torch.randn(4, 3, 5))
    torch.testing.assert_close(results[0], expected)
    gradient = results[1].to_dense() if sparse_grad else results[1]
    assert not gradient[0].any()
    assert gradient.isfinite().all()


def test_a_sparse_gradient_holds_the_rows_read_once_each() -> None:
    table = torch.randn(10_000_000, 2, requires_grad=True)  # a dense gradient would take 80 MB
    ids = torch.tensor([[7, 7, 9_999_999, 3], [7, 5, 0, 0]])
    pooled = item_soft_assignment_pool(ids, table, torch.randn(3, 2), torch.tensor([3, 2]), sparse_grad=True)
    pooled.backward(torch.randn_like(pooled))
    assert table.grad is not None
    assert table.grad._indices().tolist() == [[5, 7, 9_999_999]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_half_types_are_summed_in_float32(backend: str, dtype: torch.dtype, sparse_grad: bool) -> None:
    _, table, categories, _ = make(1, 1, 3, 8, dtype)
    batch = 5 if backend == "triton" else 50  # the interpreter takes its time
    ids = torch.randint(0, 2, (batch, 40))  # hundreds of addends to two rows: half sums would be far off
    pool = partial(item_soft_assignment_pool, ids, sparse_grad=sparse_grad)
    cotangent = torch.randn(batch, 3, 8).to(dtype)
    ours = with_gradients(pool, (table, categories), cotangent)
    exact = with_gradients(pool, (table.double(), categories.double()), cotangent)
    for our, true in zip(ours, exact, strict=True):
        assert our.dtype == dtype
        error = (our.double() - true).to_dense().norm()
        assert error <= 2.5e-3 * true.to_dense().norm()


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_empty_sequences_batches_and_tables(sparse_grad: bool) -> None:
    ids, table, categories, _ = make(3, 4, 2, 5)
    pool = partial(item_soft_assignment_pool, sparse_grad=sparse_grad)
    none = torch.zeros(3, dtype=torch.int64)
    results = with_gradients(partial(pool, ids, lengths=none), (table, categories), torch.randn(3, 2, 5))
    assert not any(result.to_dense().any() for result in results)
    assert pool(ids[:0], table, categories).shape == (0, 2, 5)
    assert pool(ids[:, :0], table, categories).shape == (3, 2, 5)
    assert not pool(ids[0, :0], table, categories, offsets=torch.zeros(4, dtype=torch.int32)).any()
    # Nothing is read from a table without rows: that works, with a gradient of its shape.
    results = with_gradients(partial(pool, ids, lengths=none), (table[:0], categories), torch.randn(3, 2, 5))
    assert not results[0].any()
    assert results[1].shape == (0, 5)


def test_zero_rows_and_nan() -> None:
    table, categories = torch.randn(4, 3), torch.randn(2, 3)
    table[1] = 0
    pool = partial(item_soft_assignment_pool, torch.tensor([[0, 1], [2, 3]]))
    pooled, table_grad, _ = with_gradients(pool, (table, categories), torch.randn(2, 2, 3))
    torch.testing.assert_close(pooled[0], item_soft_assignment_pool(torch.tensor([[0]]), table, categories)[0])
    assert not table_grad[1].any()
    assert table_grad[0].any()
    table[2, 0] = math.nan
    assert pool(table, categories).isnan().flatten(1).all(1).tolist() == [False, True]


@given(seed=st.integers(0, 2**31), batch=st.integers(1, 5), length=st.integers(1, 12), m=st.integers(1, 9))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(seed: int, batch: int, length: int, m: int) -> None:
    torch.manual_seed(seed)
    ids, table, categories, lengths = make(batch, length, m, 6)
    pool = item_soft_assignment_pool
    pooled = pool(ids, table, categories, lengths)
    order = torch.randperm(m)
    torch.testing.assert_close(pool(ids, table, categories[order], lengths), pooled[:, order])
    users = torch.randperm(batch)
    torch.testing.assert_close(pool(ids[users], table, categories, lengths[users]), pooled[users])
    torch.testing.assert_close(pool(F.pad(ids, (0, 3), value=-7), table, categories, lengths), pooled)
    torch.testing.assert_close(pool(ids, table * torch.rand(V, 1).add(0.1), 5 * categories, lengths), pooled)
    rows, offsets = to_jagged(ids, lengths)
    torch.testing.assert_close(pool(rows, table, categories, offsets=offsets), pooled)
    # The items' names do not matter.
    names = torch.randperm(V)
    torch.testing.assert_close(pool(names.argsort()[ids], table[names], categories, lengths), pooled)


def test_strided_inputs() -> None:
    ids, table, categories, lengths = make(3, 4, 3, 5)
    pooled = item_soft_assignment_pool(
        ids.T.contiguous().T, table.T.contiguous().T, categories[:1].expand(3, -1), lengths
    )
    expected = item_soft_assignment_pool(ids, table, categories[:1].repeat(3, 1), lengths)
    torch.testing.assert_close(pooled, expected)


def test_no_gradient_is_computed_that_nobody_asked_for() -> None:
    ids, table, categories, lengths = make(2, 3, 4, 5)
    item_soft_assignment_pool(ids, table, categories.requires_grad_(), lengths).sum().backward()
    assert table.grad is None
    assert categories.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_converts_the_rows_not_the_table(dtype: torch.dtype) -> None:
    ids, table, categories, lengths = make(2, 3, 4, 5, torch.float32)
    table = table.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = item_soft_assignment_pool(ids, table.requires_grad_(), categories, lengths)
    rows = F.embedding(ids, table.bfloat16())
    assert torch.equal(pooled, soft_assignment_pool(rows, categories.bfloat16(), lengths))
    pooled.sum().backward()
    assert table.grad is not None
    assert table.grad.dtype == dtype


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_compiles_as_one_graph(jagged: bool) -> None:
    ids, table, categories, lengths = make(3, 6, 4, 5, torch.float32)
    options = {"lengths": lengths}
    if jagged:
        ids, offsets = to_jagged(ids, lengths)
        options = {"offsets": offsets}
    pool = partial(item_soft_assignment_pool, **options)
    compiled = torch.compile(lambda *inputs: pool(ids, *inputs), fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(3, 4, 5)
    expected = with_gradients(lambda *inputs: pool(ids, *inputs), (table, categories), cotangent)
    for our, their in zip(with_gradients(compiled, (table, categories), cotangent), expected, strict=True):
        torch.testing.assert_close(our, their)


def test_a_sparse_gradient_does_not_compile() -> None:
    ids, table, categories, _ = make(3, 6, 4, 5, torch.float32)
    compiled = torch.compile(
        lambda table: item_soft_assignment_pool(ids, table, categories, sparse_grad=True),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(Exception, match="sparse_grad: expected False inside a compiled graph"):
        compiled(table)


IDS, TABLE, CATEGORIES, LENGTHS = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(7, 5), torch.zeros(4, 5), [1, 2]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"ids: expected a tensor \[B, L\], found list", {"ids": [[1]]}),
        (TypeError, r"ids: expected a dtype among int64, int32, found float32 \[2, 3\]", {"ids": IDS.float()}),
        (ValueError, r"ids: expected shape \[B, L\], found int64 \[3\]", {"ids": IDS[0]}),
        (ValueError, r"ids: expected shape \[T\]", {"lengths": None, "offsets": torch.tensor([0, 6])}),
        (ValueError, r"offsets: expected values from 0 to 3 \(rows of ids\)",
         {"ids": IDS[0], "lengths": None, "offsets": torch.tensor([0, 6])}),
        (IndexError, r"ids\[1, 1\]: expected a value in \[0, 7\), found 7",
         {"ids": torch.tensor([[0, 9, 9], [6, 7, -1]])}),
        (IndexError, r"ids\[0, 0\]: .* found -1", {"ids": torch.tensor([[-1, 0, 0], [7, 0, 0]])}),
        (IndexError, r"ids\[2\]: .* found 8",
         {"ids": torch.tensor([0, 1, 8]), "lengths": None, "offsets": torch.tensor([0, 2, 3])}),
        (IndexError, r"ids\[0, 0\]: expected a value in \[0, 0\), found 0", {"table": TABLE[:0]}),
        (TypeError, r"table: expected a dtype among", {"table": TABLE.long()}),
        (ValueError, r"table: expected shape \[V, d\]", {"table": TABLE[0]}),
        (ValueError, r"categories: expected shape \[4, 5\] \(.*, d as table\)", {"categories": torch.zeros(4, 6)}),
        (ValueError, r"categories: .* without a zero, found \[0, 5\]", {"categories": CATEGORIES[:0]}),
        (TypeError, r"categories: expected dtype torch.float32, as table", {"categories": CATEGORIES.double()}),
        (ValueError, r"categories: expected device cpu, as table", {"categories": CATEGORIES.to("meta")}),
        (ValueError, r"ids: expected device cpu, as table", {"ids": IDS.to("meta")}),
        (ValueError, r"lengths: expected shape \[2\] \(\[B\], as ids\)", {"lengths": torch.tensor([1])}),
        (ValueError, r"lengths\[1\]: expected a value in \[0, 4\), found 7", {"lengths": torch.tensor([1, 7])}),
        (ValueError, r"lengths, offsets: expected one", {"ids": IDS[0], "offsets": torch.tensor([0, 3])}),
        (ValueError, r"temperature: expected a positive finite number, found 0", {"temperature": 0.0}),
        (ValueError, r"views: expected shape \[1, 2, 3\]", {"views": torch.ones(1, 2, 4, dtype=torch.bool)}),
        (ValueError, r"views: expected 1 to 8 views, found 9", {"views": torch.ones(9, 2, 3, dtype=torch.bool)}),
        (ValueError, r"backend: expected one of auto, reference", {"backend": "gpu"}),
        pytest.param(
            ValueError,
            r"backend: item_soft_assignment_pool cannot run on 'cuda': ",
            {"backend": "cuda"},
            marks=refuses_cuda,
        ),
    ],
)  # fmt: skip
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        item_soft_assignment_pool(
            **{"ids": IDS, "table": TABLE, "categories": CATEGORIES, "lengths": torch.tensor(LENGTHS), **arguments}
        )
