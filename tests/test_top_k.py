"""Exact retrieval against sorting everything, with ties, exclusions and block borders, on every backend."""

import importlib

import numpy as np
import pytest
import torch
from checking import has_cpu
from hypothesis import given, settings
from hypothesis import strategies as st

from cmi_fast.retrieval import top_k

# The package exports the function under the name of its module.
REFERENCE = importlib.import_module("cmi_fast.reference.top_k")
BACKENDS = ["reference"] + (["cpu"] if has_cpu else [])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 3 users and of 7 items in the reference, so that small inputs cross every border."""
    monkeypatch.setattr(REFERENCE, "USER_BLOCK", 3)
    monkeypatch.setattr(REFERENCE, "SCORE_BLOCK", 21)
    monkeypatch.setattr(REFERENCE, "ITEM_BLOCK", 7)


def brute_force(interests, items, k, exclude=None):
    """All scores, sorted user by user in Python; ``exclude`` is a list of item rows a user."""
    scores = torch.einsum("umd,vd->umv", interests, items).amax(1).tolist()
    lists = []
    for user, row in enumerate(scores):
        left_out = set(exclude[user]) if exclude else set()
        ranked = sorted((-score, item) for item, score in enumerate(row) if item not in left_out)[:k]
        lists.append(ranked + [(torch.inf, -1)] * (k - len(ranked)))
    return (
        torch.tensor([[-score for score, _ in row] for row in lists], dtype=interests.dtype).reshape(-1, k),
        torch.tensor([[item for _, item in row] for row in lists], dtype=torch.int64).reshape(-1, k),
    )


def jagged(lists, dtype=torch.int64):
    offsets = np.cumsum([0] + [len(row) for row in lists])
    return {
        "exclude_offsets": torch.tensor(offsets, dtype=dtype),
        "exclude_ids": torch.tensor([item for row in lists for item in row], dtype=dtype),
    }


def integers(rng, *shape, low=-2, high=3, dtype=torch.float32):
    """Small whole numbers: every order of summation gives the same score, and many scores are equal."""
    return torch.from_numpy(rng.integers(low, high, shape)).to(dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("backend", "dtype"), [*((name, torch.float32) for name in BACKENDS), ("auto", torch.float64)])
@pytest.mark.parametrize("k", [1, 4, 7, 20, 60])
def test_equals_brute_force(k, backend, dtype, index_dtype):
    rng = np.random.default_rng(k)
    interests, items = integers(rng, 8, 3, 4, dtype=dtype), integers(rng, 45, 4, dtype=dtype)
    # Repeats within a list; one user may be recommended nothing, one everything.
    exclude = [rng.integers(0, 45, size).tolist() for size in (0, 5, 30, 1, 90, 12, 45)] + [list(range(45))]
    scores, rows = top_k(interests, items, k, **jagged(exclude, index_dtype), backend=backend)
    expected_scores, expected_rows = brute_force(interests, items, k, exclude)
    assert scores.dtype == dtype
    assert rows.dtype == torch.int64
    assert torch.equal(rows, expected_rows)
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    users=st.integers(0, 7), m=st.integers(1, 3), items=st.integers(0, 30), k=st.integers(1, 12),
    values=st.integers(1, 4), item_block=st.integers(1, 9), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_ties_fall_to_the_smaller_row_in_blocks_of_any_size(backend, users, m, items, k, values, item_block, seed):
    rng = np.random.default_rng(seed)
    interests, table = integers(rng, users, m, 2, high=-2 + values), integers(rng, items, 2, high=-2 + values)
    exclude = [rng.integers(0, items, rng.integers(0, items)).tolist() if items else [] for _ in range(users)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REFERENCE, "USER_BLOCK", 2)
        patch.setattr(REFERENCE, "SCORE_BLOCK", 2 * item_block)
        scores, rows = top_k(interests, table, k, **jagged(exclude), backend=backend)
    expected_scores, expected_rows = brute_force(interests, table, k, exclude)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_all_scores_equal_at_full_block_size(backend, value):
    scores, rows = top_k(torch.full((300, 2, 3), value), torch.ones(20_000, 3), 50, backend=backend)
    assert torch.equal(rows, torch.arange(50).expand(300, 50))
    assert (scores == scores[0, 0]).all() and scores[0, 0] == pytest.approx(3 * value)


def test_real_valued_scores_at_full_block_size():
    generator = torch.Generator().manual_seed(0)
    interests = torch.randn(300, 4, 16, generator=generator, dtype=torch.float64)
    items = torch.randn(9_000, 16, generator=generator, dtype=torch.float64)
    scores, rows = top_k(interests, items, 50)
    expected = torch.einsum("umd,vd->umv", interests, items).amax(1).topk(50)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(rows, expected.indices)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, backend):
    generator = torch.Generator().manual_seed(0)
    interests = torch.randn(5, 2, 8, generator=generator).to(dtype)
    items = torch.randn(100, 8, generator=generator).to(dtype)
    scores, rows = top_k(interests, items, 10, backend=backend)
    expected_scores, expected_rows = top_k(interests.float(), items.float(), 10, backend=backend)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected_scores)
    assert torch.equal(rows, expected_rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_no_gradient(backend):
    rng = np.random.default_rng(0)
    interests, items = integers(rng, 4, 3, 6), integers(rng, 20, 12)
    strided = interests.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    scores, rows = top_k(strided, items[:, ::2], 5, backend=backend)
    expected_scores, expected_rows = brute_force(interests, items[:, ::2], 5)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(rows, expected_rows)
    assert not scores.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_may_point_into_a_longer_array(backend):
    rng = np.random.default_rng(1)
    interests, items = integers(rng, 5, 2, 3), integers(rng, 12, 3)
    exclude = [[0, 1], [2], [3, 4, 5], [], [6]]
    whole = jagged(exclude)
    offsets, ids = whole["exclude_offsets"][2:], whole["exclude_ids"]
    scores, rows = top_k(interests[2:], items, 6, exclude_offsets=offsets, exclude_ids=ids, backend=backend)
    expected = brute_force(interests[2:], items, 6, exclude[2:])
    assert torch.equal(scores, expected[0])
    assert torch.equal(rows, expected[1])


NAN = torch.full((4, 3), torch.nan)
GOOD_OFFSETS, GOOD_IDS = torch.tensor([0, 1, 2]), torch.tensor([3, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"interests": torch.ones(2, 3)}, ValueError, r"interests must have shape \[U, m, d\], got \[2, 3\]"),
        ({"interests": torch.ones(2, 0, 3)}, ValueError, r"at least one interest a user, got \[2, 0, 3\]"),
        ({"interests": np.ones((2, 2, 3))}, TypeError, "interests must be a torch.Tensor"),
        ({"interests": torch.ones(2, 2, 3, dtype=torch.int64)}, TypeError, "interests must be float16"),
        ({"items": torch.ones(4, 5)}, ValueError, r"items must have shape \[V, 3\]"),
        ({"items": torch.ones(4, 3, dtype=torch.float64)}, TypeError, "items must have the interests' dtype"),
        ({"items": NAN}, ValueError, r"items \[4, 3\] must be finite"),
        ({"interests": NAN.view(2, 2, 3)}, ValueError, r"interests \[2, 2, 3\] must be finite"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2.0}, TypeError, "k must be an int, got float"),
        ({"exclude_ids": None}, ValueError, "exclude_ids is missing"),
        ({"exclude_offsets": None}, ValueError, "exclude_offsets is missing"),
        ({"exclude_offsets": torch.tensor([0, 2])}, ValueError, r"exclude_offsets must have shape \[3\]"),
        ({"exclude_offsets": torch.tensor([0, 2, 1])}, ValueError, "exclude_offsets .* must rise"),
        ({"exclude_offsets": torch.tensor([0, 1, 3])}, ValueError, "must rise from 0 to at most 2"),
        ({"exclude_offsets": torch.tensor([0.0, 1, 2])}, TypeError, "exclude_offsets must be int32 or int64"),
        ({"exclude_ids": torch.tensor([3, 4])}, ValueError, "got 4 at position 1"),
        ({"exclude_ids": torch.tensor([-1, 0])}, ValueError, "got -1 at position 0"),
        ({"exclude_ids": torch.tensor([[3, 0]])}, ValueError, r"exclude_ids must have shape \[n\]"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments_are_named(change, error, message, backend):
    arguments = {
        "interests": torch.ones(2, 2, 3), "items": torch.ones(4, 3), "k": 2,
        "exclude_offsets": GOOD_OFFSETS, "exclude_ids": GOOD_IDS, "backend": backend,
    }  # fmt: skip
    top_k(**arguments)
    with pytest.raises(error, match=message):
        top_k(**arguments | change)


def test_float64_has_no_kernel():
    with pytest.raises(ValueError, match=r"backend: top_k cannot run on 'cpu'"):
        top_k(torch.ones(2, 2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64), 2, backend="cpu")
