"""item_gru: a GRU from ids and their table: error budget, gradients, registration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checking import assert_within_budget, needs_native, rounding, to_jagged, with_gradients
from torch import Tensor

from cmi_fast import reference
from cmi_fast.functional import gru, item_gru
from cmi_fast.ops.checks import FLOATING

# B, L, d, hidden, V: each shape names the regime it covers.
SHAPES = [
    pytest.param(2, 5, 3, 7, 4, id="odd"),
    pytest.param(8, 16, 64, 64, 5000, id="aligned-few-repeats"),
    pytest.param(9, 4, 65, 33, 3, id="one-past-a-tile-many-repeats"),
    pytest.param(1, 1, 1, 1, 1, id="smallest"),
    pytest.param(200, 6, 8, 16, 300, id="several-blocks"),
]


def make(
    batch: int, length: int, d: int, hidden: int, table_rows: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Ids [B, L], the table and the parameters as torch.nn.GRU draws them, and lengths [B]."""
    bound = hidden**-0.5
    shapes = [(3 * hidden, d), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)]
    parameters = [torch.empty(shape, dtype=dtype).uniform_(-bound, bound) for shape in shapes]
    lengths = torch.randint(0, length + 1, (batch,))
    return (
        torch.randint(0, table_rows, (batch, length)),
        [torch.randn(table_rows, d, dtype=dtype), *parameters],
        lengths,
    )


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
@pytest.mark.parametrize("normalize", [False, True], ids=["as-they-are", "unit"])
@pytest.mark.parametrize(("batch", "length", "d", "hidden", "table_rows"), SHAPES)
def test_error_budget(
    isa_level: str,
    batch: int,
    length: int,
    d: int,
    hidden: int,
    table_rows: int,
    normalize: bool,
    jagged: bool,
    dtype: torch.dtype,
) -> None:
    ids, inputs, lengths = make(batch, length, d, hidden, table_rows, dtype)
    lengths[0] = length  # at least one item, jagged ones too
    ids[torch.arange(length) >= lengths[:, None]] = -(2**40)  # never read
    offsets = None
    if jagged:
        ids, offsets = to_jagged(ids, lengths)
        lengths = None

    def ours(*inputs: Tensor) -> Tensor:
        return item_gru(ids, *inputs, lengths, offsets=offsets, normalize=normalize, backend="cpu")

    def exact(*inputs: Tensor) -> Tensor:
        return reference.item_gru(ids, *inputs, lengths, offsets, normalize)

    assert_within_budget(ours, exact, inputs, torch.randn(batch, hidden, dtype=dtype), rounding(dtype))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("normalize", [False, True], ids=["as-they-are", "unit"])
def test_equals_the_gru_of_gathered_items(backend: str, normalize: bool) -> None:
    ids, inputs, lengths = make(6, 9, 5, 4, 12)
    cotangent = torch.randn(6, 4, dtype=torch.float64)

    def of_items(table: Tensor, *parameters: Tensor) -> Tensor:
        items = F.embedding(ids, table)
        return gru(F.normalize(items, dim=-1) if normalize else items, *parameters, lengths, backend="reference")

    ours = with_gradients(
        lambda *x: item_gru(ids, *x, lengths, normalize=normalize, backend=backend), inputs, cotangent
    )
    torch.testing.assert_close(ours, with_gradients(of_items, inputs, cotangent))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("normalize", [False, True], ids=["as-they-are", "unit"])
def test_gradcheck(backend: str, normalize: bool) -> None:
    ids, inputs, _ = make(3, 4, 3, 2, 5)
    lengths = torch.tensor([4, 0, 2], dtype=torch.int32)
    ids = ids.int()
    cotangent = torch.randn(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: (item_gru(ids, *x, lengths, normalize=normalize, backend=backend) * cotangent).sum(),
        [x.requires_grad_() for x in inputs],
    )


def test_second_derivatives_are_the_references() -> None:
    ids, inputs, lengths = make(2, 3, 3, 2, 4)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(
        lambda *x: item_gru(ids, *x, lengths, normalize=True, backend="reference"), inputs
    )


@needs_native
def test_same_bits_again_and_on_any_number_of_threads() -> None:
    ids, inputs, lengths = make(400, 30, 24, 40, 3000, torch.float32)
    cotangent = torch.randn(400, 40)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(lambda *x: item_gru(ids, *x, lengths, normalize=True), inputs, cotangent))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_native
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_opcheck(jagged: bool) -> None:
    ids, inputs, lengths = make(3, 6, 4, 5, 7, torch.float32)
    index: tuple[Tensor | None, Tensor | None] = (None, None)  # without padding: the saved rows there are never written
    if jagged:
        ids, offsets = to_jagged(ids, lengths)
        index = (None, offsets)
    leaves = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.cmi_fast.item_gru.default, (ids, *leaves, *index, True, True))
    detached = [x.detach() for x in leaves]
    torch.library.opcheck(torch.ops.cmi_fast.item_gru.default, (ids, *detached, *index, True, False))
    _, saved = torch.ops.cmi_fast.item_gru(ids, *detached, *index, True, True)
    torch.library.opcheck(
        torch.ops.cmi_fast.item_gru_backward.default,
        (torch.randn(3, 5), saved, ids, *detached, *index, True, True, *[True] * 5),
    )


@needs_native
@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_that_nobody_wants_changes_no_other(wanted: int) -> None:
    ids, inputs, lengths = make(3, 4, 4, 5, 6)
    everything = with_gradients(lambda *x: item_gru(ids, *x, lengths, normalize=True), inputs, torch.ones(3, 5))[1:]
    inputs[wanted].requires_grad_()
    item_gru(ids, *inputs, lengths, normalize=True).sum().backward()
    assert torch.equal(inputs[wanted].grad, everything[wanted])


@needs_native
@pytest.mark.parametrize("table_rows", [3000, 40_000], ids=["cached", "streamed"])
def test_large_tables(isa_level: str, table_rows: int) -> None:
    """Beyond 4 MB the gradient of the table is written past the caches."""
    ids, inputs, lengths = make(64, 100, 64, 3, table_rows, torch.float32)
    assert_within_budget(
        lambda *x: item_gru(ids, *x, lengths, normalize=True, backend="cpu"),
        lambda *x: reference.item_gru(ids, *x, lengths, normalize=True),
        inputs,
        torch.randn(64, 3),
        rounding(torch.float32),
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_zero_rows_and_rows_whose_squares_overflow(backend: str) -> None:
    ids, inputs, _ = make(2, 4, 3, 2, 4, torch.float32)
    ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    scale = torch.tensor([0, 1e25, 1e-30, 1])[:, None]
    table = (inputs[0] * scale).requires_grad_()
    last = item_gru(ids, table, *inputs[1:], normalize=True, backend=backend)
    expected = item_gru(ids, inputs[0] * (scale != 0), *inputs[1:], normalize=True, backend=backend)
    torch.testing.assert_close(last, expected)
    last.sum().backward()
    assert table.grad is not None
    assert not table.grad[0].any()
    assert table.grad.isfinite().all()


def test_autocast_keeps_the_table() -> None:
    ids, inputs, lengths = make(5, 6, 4, 3, 9, torch.float32)
    inputs = [x.requires_grad_() for x in inputs]
    expected = item_gru(ids, *inputs, lengths, normalize=True)
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            last = item_gru(ids, *inputs, lengths, normalize=True, backend=backend)
        assert last.dtype == torch.bfloat16
        torch.testing.assert_close(last.float(), expected, rtol=0, atol=0.02)
        (gradient,) = torch.autograd.grad(last.float().sum(), inputs[0])
        assert gradient.dtype == torch.float32


def test_compiles_as_one_graph() -> None:
    ids, inputs, lengths = make(3, 5, 4, 3, 9, torch.float32)

    def last(*inputs: Tensor) -> Tensor:
        return item_gru(ids, *inputs, lengths, normalize=True)

    compiled = torch.compile(last, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, inputs, torch.ones(3, 3)), with_gradients(last, inputs, torch.ones(3, 3))
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_empty_sequences_batches_and_tables(backend: str) -> None:
    ids, (table, *parameters), _ = make(2, 5, 4, 3, 6, torch.float32)
    none = torch.zeros(2, dtype=torch.int64)
    for states in (
        item_gru(ids, table, *parameters, none, backend=backend),
        item_gru(ids - 9, table[:0], *parameters, none, backend=backend),
        item_gru(ids[0, :0], table, *parameters, offsets=torch.zeros(3, dtype=torch.int64), backend=backend),
    ):
        assert torch.equal(states, torch.zeros(2, 3))
    assert item_gru(ids[:0], table, *parameters, none[:0], backend=backend).shape == (0, 3)


IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"ids: expected a dtype among int64, int32, found float32 \[2, 3\]", {"ids": IDS.float()}),
        (ValueError, r"ids: expected shape \[B, L\], found int64 \[3\]", {"ids": IDS[0]}),
        (
            IndexError,
            r"ids\[1, 2\]: expected a value in \[0, 4\), found 4",
            {"ids": torch.tensor([[0, 1, 2], [3, 0, 4]])},
        ),
        (ValueError, r"table: expected shape \[V, d\]", {"table": torch.zeros(4)}),
        (
            ValueError,
            r"weight_ih: expected shape \[6, 4\] \(\[3 hidden, d\], as weight_hh and table\)",
            {"weight_ih": torch.zeros(6, 3)},
        ),
        (TypeError, r"weight_hh: expected dtype torch.float32, as table", {"weight_hh": torch.zeros(6, 2).double()}),
        (ValueError, r"lengths\[1\]: expected a value in \[0, 4\), found 4", {"lengths": torch.tensor([0, 4])}),
    ],
)
def test_bad_arguments(backend: str, error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    given = {"ids": IDS, "table": torch.zeros(4, 4), "weight_ih": torch.zeros(6, 4), "weight_hh": torch.zeros(6, 2)}
    with pytest.raises(error, match=message):
        item_gru(**{**given, **arguments}, backend=backend)


@needs_native
@pytest.mark.parametrize("bad", [-1, 4])
def test_the_operator_itself_never_reads_out_of_bounds(bad: int) -> None:
    table, *parameters = make(2, 3, 4, 2, 4)[1]
    with pytest.raises(RuntimeError, match=rf"ids: expected a value in \[0, 4\), found {bad} in sequence 1"):
        torch.ops.cmi_fast.item_gru(torch.tensor([[0], [bad]]), table, *parameters, None, None, False, False)
    with pytest.raises(RuntimeError, match="ids must be"):
        torch.ops.cmi_fast.item_gru(IDS[0], table, *parameters, None, None, False, False)
