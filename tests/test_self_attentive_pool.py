"""self_attentive_pool: ComiRec-SA's equations, padding, gradients, on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import BACKENDS, to_jagged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmi_fast.functional import self_attentive_pool


def make(batch: int, length: int, d: int, h: int, k: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "items": torch.randn(batch, length, d, dtype=dtype),
        "weight": torch.randn(h, d, dtype=dtype) / d**0.5,
        "queries": torch.randn(k, h, dtype=dtype),
        "lengths": torch.randint(0, length + 1, (batch,)),
        "bias": torch.randn(h, dtype=dtype),
        "positions": torch.randn(length, d, dtype=dtype),
    }


def literal(
    items: Tensor,
    weight: Tensor,
    queries: Tensor,
    lengths: Tensor,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """A = softmax_t(W2 tanh(W1 (x_t + p_t) + c)), u_k = sum_t a_tk x_t, a number at a time."""
    pooled = torch.zeros(len(items), len(queries), items.shape[-1], dtype=items.dtype)
    for b, n in enumerate(lengths.tolist()):
        for k, query in enumerate(queries):
            scores = []
            for t in range(n):
                key = items[b, t] if positions is None else items[b, t] + positions[t]
                hidden = [
                    math.tanh(float(row @ key) + (float(bias[i]) if bias is not None else 0.0))
                    for i, row in enumerate(weight)
                ]
                scores.append(sum(float(q) * x for q, x in zip(query, hidden, strict=True)))
            total = sum(math.exp(s) for s in scores)
            for t in range(n):
                pooled[b, k] += math.exp(scores[t]) / total * items[b, t]
    return pooled


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("without", [(), ("bias",), ("positions",), ("bias", "positions")], ids=str)
def test_equals_the_equations(backend: str, without: tuple[str, ...]) -> None:
    inputs = {name: x for name, x in make(4, 5, 3, 7, 2).items() if name not in without}
    torch.testing.assert_close(self_attentive_pool(**inputs, backend=backend), literal(**inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("jagged", [False, True], ids=["padded", "jagged"])
def test_gradcheck(backend: str, jagged: bool) -> None:
    inputs = make(2, 3, 3, 4, 2)
    lengths = inputs.pop("lengths")
    options: dict[str, Any] = {"lengths": lengths}
    if jagged:
        inputs["items"], offsets = to_jagged(inputs["items"], lengths)
        options = {"offsets": offsets}
    cotangent = torch.randn(2, 2, 3, dtype=torch.float64)
    names, leaves = zip(*inputs.items(), strict=True)

    def pooled(*leaves: Tensor) -> Tensor:
        named = dict(zip(names, leaves, strict=True))
        return (self_attentive_pool(**named, **options, backend=backend) * cotangent).sum()

    assert torch.autograd.gradcheck(pooled, [x.requires_grad_() for x in leaves])


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_not_matter(backend: str) -> None:
    inputs = make(4, 5, 3, 7, 2)
    inputs["lengths"] = torch.tensor([5, 0, 2, 3])
    padding = torch.arange(5) >= inputs["lengths"][:, None]
    clean = self_attentive_pool(**inputs, backend=backend)
    inputs["items"] = inputs["items"].masked_fill(padding[..., None], math.nan).requires_grad_()
    pooled = self_attentive_pool(**inputs, backend=backend)
    torch.testing.assert_close(pooled, clean)
    assert not pooled[1].any()
    pooled.square().sum().backward()
    assert not inputs["items"].grad[padding].any()
    assert inputs["items"].grad[~padding].any(-1).all()


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 5),
    length=st.integers(1, 9),
    index=st.sampled_from([torch.int32, torch.int64]),
    backend=st.sampled_from(BACKENDS),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_properties(seed: int, batch: int, length: int, index: torch.dtype, backend: str) -> None:
    torch.manual_seed(seed)
    inputs = make(batch, length, 4, 6, 3)
    inputs["lengths"] = inputs["lengths"].to(index)
    pooled = self_attentive_pool(**inputs, backend=backend)
    items, lengths = inputs.pop("items"), inputs.pop("lengths")
    users = torch.randperm(batch)
    torch.testing.assert_close(
        self_attentive_pool(items[users], lengths=lengths[users], **inputs, backend=backend), pooled[users]
    )
    rows, offsets = to_jagged(items, lengths.long())
    torch.testing.assert_close(self_attentive_pool(rows, offsets=offsets.to(index), **inputs, backend=backend), pooled)
    del inputs["positions"]
    # Without positions a sequence is a set; equal items are pooled to themselves.
    order = torch.randperm(length)
    torch.testing.assert_close(
        self_attentive_pool(items[:, order], **inputs, backend=backend),
        self_attentive_pool(items, **inputs, backend=backend),
    )
    same = items[:, :1].expand_as(items)
    torch.testing.assert_close(self_attentive_pool(same, **inputs, backend=backend), same[:, :1].expand(-1, 3, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sequences_and_batches(backend: str) -> None:
    inputs = make(2, 5, 4, 6, 3)
    items, lengths = inputs.pop("items"), torch.zeros_like(inputs.pop("lengths"))
    for empty in (
        self_attentive_pool(items, lengths=lengths, **inputs, backend=backend),
        self_attentive_pool(items[:, :0], **inputs, backend=backend),
        self_attentive_pool(items[0, :0], offsets=torch.zeros(3, dtype=torch.int64), **inputs, backend=backend),
    ):
        assert torch.equal(empty, torch.zeros(2, 3, 4, dtype=torch.float64))
    assert self_attentive_pool(items[:0], **inputs, backend=backend).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"items: expected a tensor \[B, L, d\], found NoneType", {"items": None}),
        (ValueError, r"weight: expected shape \[6, 4\]", {"weight": torch.zeros(6, 3)}),
        (ValueError, r"queries: expected shape \[3, 6\]", {"queries": torch.zeros(3, 5)}),
        (ValueError, r"queries: expected shape \[K, h\] without a zero", {"queries": torch.zeros(0, 6)}),
        (ValueError, r"bias: expected shape \[6\]", {"bias": torch.zeros(5)}),
        (ValueError, r"positions: expected shape \[5, 4\]", {"positions": torch.zeros(5, 3)}),
        (ValueError, r"positions: expected at least 5 places, as the longest", {"positions": torch.zeros(4, 4)}),
        (TypeError, r"positions: expected dtype torch.float32", {"positions": torch.zeros(5, 4).double()}),
        (ValueError, r"lengths\[1\]: expected a value in \[0, 6\), found 6", {"lengths": torch.tensor([0, 6])}),
        (ValueError, r"self_attentive_pool has no 'cuda' kernel", {"backend": "cuda"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    inputs = make(2, 5, 4, 6, 3, torch.float32)
    with pytest.raises(error, match=message):
        self_attentive_pool(**{**inputs, **arguments})


def test_too_long_a_jagged_sequence() -> None:
    inputs = make(1, 5, 4, 6, 3)
    with pytest.raises(ValueError, match=r"positions: expected at least 4 places, as the longest sequence, found 3"):
        self_attentive_pool(
            inputs["items"][0],
            inputs["weight"],
            inputs["queries"],
            positions=torch.zeros(3, 4).double(),
            offsets=torch.tensor([0, 1, 5]),
        )
