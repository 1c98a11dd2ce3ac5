"""nn.GRU: torch's own GRU, its last valid state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast import nn


def make(batch: int, length: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, length, d, dtype=dtype), torch.randint(0, length + 1, (batch,))


def pair(d: int, hidden: int, bias: bool = True) -> tuple[nn.GRU, torch.nn.GRU]:
    """Ours and torch's with the same parameters, in float64."""
    ours = nn.GRU(d, hidden, bias=bias).double()
    theirs = torch.nn.GRU(d, hidden, bias=bias, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def literal(gru: torch.nn.GRU, items: Tensor, lengths: Tensor) -> Tensor:
    """torch's GRU on one sequence at a time, without padding."""
    states = [
        gru(row[None, :n])[0][0, -1] if n else row.new_zeros(gru.hidden_size)
        for row, n in zip(items, lengths, strict=True)
    ]
    return torch.stack(states)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(bias: bool) -> None:
    ours, theirs = pair(4, 3, bias)
    items, _ = make(4, 5, 4)
    lengths = torch.tensor([5, 0, 1, 3])
    torch.testing.assert_close(ours(items, lengths), literal(theirs, items, lengths))
    torch.testing.assert_close(ours(items), theirs(items)[1][0])
    assert not ours(items, lengths)[1].any()


@pytest.mark.parametrize("bias", [True, False])
def test_from_ids_equals_that_of_gathered_items(bias: bool) -> None:
    gru, _ = pair(4, 3, bias)
    table = torch.randn(7, 4, dtype=torch.float64)
    ids, lengths = torch.randint(0, 7, (4, 5)), torch.tensor([5, 0, 1, 3])
    torch.testing.assert_close(gru.from_ids(ids, table, lengths), gru(table[ids], lengths))
    unit = torch.nn.functional.normalize(table, dim=-1)
    torch.testing.assert_close(gru.from_ids(ids, table, lengths, normalize=True), gru(unit[ids], lengths))
    offsets = torch.tensor([0, 2, 5])
    torch.testing.assert_close(gru.from_ids(ids[0], table, offsets=offsets), gru(table[ids[0]], offsets=offsets))


def test_state_dict_is_torchs() -> None:
    for bias in (True, False):
        ours, theirs = nn.GRU(4, 3, bias=bias), torch.nn.GRU(4, 3, bias=bias)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        items, _ = make(2, 3, 4, torch.float32)
        torch.testing.assert_close(ours(items), theirs(items.transpose(0, 1))[1][0])


def test_starts_as_torchs() -> None:
    torch.manual_seed(3)
    ours = nn.GRU(4, 3).state_dict()
    torch.manual_seed(3)
    theirs = torch.nn.GRU(4, 3).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_gradcheck(jagged: bool) -> None:
    gru = nn.GRU(3, 2).double()
    items, _ = make(3, 4, 3)
    lengths = torch.tensor([4, 0, 2])
    cotangent = torch.randn(3, 2, dtype=torch.float64)
    options = {"lengths": lengths}
    if jagged:
        items = items[torch.arange(4) < lengths[:, None]]
        options = {"offsets": torch.tensor([0, 4, 4, 6], dtype=torch.int32)}
    names, parameters = zip(*gru.named_parameters(), strict=True)

    def last(items: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return (torch.func.functional_call(gru, named, (items,), options) * cotangent).sum()

    assert torch.autograd.gradcheck(last, (items.requires_grad_(), *parameters))


@pytest.mark.parametrize("longest", [3, 5])
def test_what_lies_beyond_a_length_does_not_matter(longest: int) -> None:
    gru = nn.GRU(4, 3).double()
    items, _ = make(3, 5, 4)
    lengths = torch.tensor([longest, 0, 2])
    poisoned = items.masked_fill((torch.arange(5) >= lengths[:, None])[..., None], math.nan).requires_grad_()
    states = gru(poisoned, lengths)
    torch.testing.assert_close(states, gru(items, lengths))
    states.square().sum().backward()
    assert poisoned.grad is not None
    assert not poisoned.grad[torch.arange(5) >= lengths[:, None]].any()
    for leaf in (poisoned, *gru.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 5),
    length=st.integers(1, 8),
    index=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(seed: int, batch: int, length: int, index: torch.dtype) -> None:
    torch.manual_seed(seed)
    gru = nn.GRU(4, 3).double()
    items, lengths = make(batch, length, 4)
    states = gru(items, lengths.to(index))
    users = torch.randperm(batch)
    torch.testing.assert_close(gru(items[users], lengths[users]), states[users])
    torch.testing.assert_close(gru(torch.nn.functional.pad(items, (0, 0, 0, 2)), lengths), states)
    rows = items[torch.arange(length) < lengths[:, None]]
    offsets = torch.cat([torch.zeros(1, dtype=index), lengths.cumsum(0).to(index)])
    torch.testing.assert_close(gru(rows, offsets=offsets), states)


def test_empty_sequences_and_batches() -> None:
    gru = nn.GRU(4, 3)
    items, _ = make(2, 5, 4, torch.float32)
    none = torch.zeros(2, dtype=torch.int64)
    states = [gru(items, none), gru(items[:, :0]), gru(items[0, :0], offsets=torch.zeros(3, dtype=torch.int64))]
    assert all(torch.equal(state, torch.zeros(2, 3)) for state in states)
    assert gru(items[:0], none[:0]).shape == (0, 3)
    assert gru(items[0, :0], offsets=none[:1]).shape == (0, 3)


def test_autocast_and_half_types() -> None:
    gru = nn.GRU(4, 3)
    items, lengths = make(3, 5, 4, torch.float32)
    expected = gru(items, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gru(items, lengths).float(), expected, rtol=0, atol=0.02)
        torch.testing.assert_close(gru(items.bfloat16(), lengths).float(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(gru.bfloat16()(items.bfloat16(), lengths).float(), expected, rtol=0, atol=0.02)


def test_compiles_as_one_graph() -> None:
    gru = nn.GRU(4, 3)
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager")
    items, lengths = make(3, 5, 4, torch.float32)
    gradients = []
    for module in (gru, compiled):
        gru.zero_grad()
        module(items, lengths).square().sum().backward()
        gradients.append([p.grad.clone() for p in gru.parameters()])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(compiled(items, lengths), gru(items, lengths))


ITEMS = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"items: expected a tensor \[B, L, d\], found NoneType", {"items": None}),
        (ValueError, r"items: expected shape \[B, L, d\], found float32 \[3, 4\]", {"items": ITEMS[0]}),
        (ValueError, r"items: expected shape \[2, 3, 4\] \(d is input_size\)", {"items": torch.zeros(2, 3, 5)}),
        (TypeError, r"items: expected dtype torch.float32, as the parameters", {"items": ITEMS.double()}),
        (ValueError, r"items: expected device cpu, as the parameters", {"items": ITEMS.to("meta")}),
        (ValueError, r"lengths\[1\]: expected a value in \[0, 4\), found 4", {"lengths": torch.tensor([0, 4])}),
        (ValueError, r"lengths: expected shape \[2\]", {"lengths": torch.tensor([0])}),
        (ValueError, r"offsets: expected values from 0 to 3", {"items": ITEMS[0], "offsets": torch.tensor([0, 2])}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        nn.GRU(4, 3)(**{"items": ITEMS, **arguments})


def test_all_sequences_empty_still_have_a_gradient() -> None:
    gru = nn.GRU(5, 3)
    for states in (
        gru(torch.randn(2, 4, 5), torch.tensor([0, 0])),
        gru(torch.randn(0, 5), offsets=torch.tensor([0, 0, 0])),
    ):
        assert not states.any()
        gru.zero_grad()
        states.sum().backward()
        assert not gru.weight_ih_l0.grad.any()
