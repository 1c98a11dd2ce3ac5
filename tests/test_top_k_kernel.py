"""The compiled top_k: exactly the lists that sorting all scores in exact arithmetic gives, at every precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checking import needs_native
from numpy.typing import NDArray
from torch import Tensor

from cmi_fast import _native
from cmi_fast.retrieval import top_k

pytestmark = needs_native


def levels_and_precisions() -> list[tuple[str, str]]:
    """What this CPU runs: float32 at every level, int8 where it has AVX-512 VNNI."""
    found = [(level, "float32") for level in _native.isa_levels()]
    for level in _native.isa_levels():
        before = torch.ops.cmi_fast.isa_level()
        _native.set_isa_level(level)
        try:
            torch.ops.cmi_fast.top_k(torch.ones(1, 1, 1), torch.ones(1, 1), 1, None, None, "int8")
            found.append((level, "int8"))
        except RuntimeError:
            pass
        finally:
            _native.set_isa_level(before)
    return found


@pytest.fixture(params=levels_and_precisions() if _native.available else [], ids="-".join)
def precision(request: pytest.FixtureRequest):
    level, precision = request.param
    before = torch.ops.cmi_fast.isa_level()
    _native.set_isa_level(level)
    yield precision
    _native.set_isa_level(before)


def search(interests: Tensor, items: Tensor, k: int, precision: str, exclude: list[list[int]] | None = None):
    offsets = ids = None
    if exclude is not None:
        offsets = torch.tensor([0, *np.cumsum([len(row) for row in exclude])])
        ids = torch.tensor([item for row in exclude for item in row], dtype=torch.int64)
    return torch.ops.cmi_fast.top_k(interests, items, k, offsets, ids, precision)


def true_scores(interests: Tensor, items: Tensor) -> NDArray[np.longdouble]:
    """[U, V] in float64, and every sum in the order of its terms: the same bits for the same numbers."""
    u, v = interests.double().numpy(), items.double().numpy()
    scores = np.zeros((*u.shape[:2], len(v)))
    for j in range(u.shape[2]):
        scores += u[:, :, j, None] * v[:, j]
    return scores.max(1)


def assert_exact(
    interests: Tensor, items: Tensor, k: int, precision: str, exclude: list[list[int]] | None = None
) -> None:
    """Scores are those of float64, rounded; no item that is left out beats one that is listed; ties by row.

    Two sums of the same float64 terms in another order differ by some roundings: within them two items may change
    places. Scores that are equal in exact arithmetic on whole numbers are compared exactly by other tests.
    """
    scores, rows = search(interests, items, k, precision, exclude)
    truth = true_scores(interests, items)
    size = np.abs(interests.double().numpy()).max(initial=0) * np.abs(items.double().numpy()).max(initial=0)
    rounding = 1e-15 * interests.shape[2] * size
    for user, (row, score) in enumerate(zip(rows.numpy(), scores.numpy(), strict=True)):
        allowed = np.ones(len(items), dtype=bool)
        allowed[exclude[user] if exclude else []] = False
        count = min(k, allowed.sum())
        listed = row[:count]
        assert (row[count:] == -1).all() and (score[count:] == -np.inf).all()
        assert allowed[listed].all() and len(set(listed)) == count
        assert (np.abs(truth[user, listed].astype(np.float32) - score[:count]) <= np.abs(score[:count]) * 2e-7).all()
        assert (np.diff(truth[user, listed]) <= rounding).all()
        allowed[listed] = False
        if allowed.any() and count:
            assert truth[user, allowed].max() <= truth[user, listed[-1]] + rounding


@pytest.mark.parametrize("d", [1, 3, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 9, 64])
def test_every_shape(precision: str, m: int, d: int) -> None:
    users, count, k = 5 + m % 3, 173, 20
    exclude = [list(range(u, min(40 * u, count), 3)) for u in range(users)]
    assert_exact(torch.randn(users, m, d), torch.randn(count, d), k, precision, exclude)


@pytest.mark.parametrize("count", [0, 1, 2, 47, 48, 49, 500])
@pytest.mark.parametrize("k", [1, 2, 3, 50, 600])
def test_every_length_of_lists(precision: str, count: int, k: int) -> None:
    assert_exact(torch.randn(70, 8, 16), torch.randn(count, 16), k, precision)


@pytest.mark.parametrize("users", [0, 1, 2, 63, 64, 65, 130])
def test_every_number_of_users(precision: str, users: int) -> None:
    for m in (1, 3, 8):
        assert_exact(torch.randn(users, m, 10), torch.randn(60, 10), 5, precision)


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_whole_numbers_and_many_ties(precision: str, order: str) -> None:
    """Every sum is exact, so lists must be equal to the last place: ties by row, whatever the items' order."""
    rng = np.random.default_rng(0)
    interests = torch.from_numpy(rng.integers(-2, 3, (30, 3, 5))).float()
    items = torch.from_numpy(rng.integers(-2, 3, (3000, 5))).float()
    if order != "random":
        best = torch.from_numpy(true_scores(interests[:1], items)[0])
        items = items[best.argsort(descending=order == "falling", stable=True)]
    exclude = [rng.integers(0, 3000, 50 * user).tolist() for user in range(30)]
    scores, rows = search(interests, items, 50, precision, exclude)
    truth = true_scores(interests, items)
    for user, left_out in enumerate(exclude):
        truth[user, left_out] = -np.inf
    expected = np.argsort(-truth, axis=1, kind="stable")[:, :50]
    assert torch.equal(rows, torch.from_numpy(expected))
    assert torch.equal(scores, torch.from_numpy(np.take_along_axis(truth, expected, 1)).float())


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_sorted_items_of_nearly_equal_scores(precision: str, order: str) -> None:
    """Scores a few float32 roundings apart, far below what int8 tells apart: only the bound can be right."""
    direction = torch.randn(64)
    steps = torch.arange(4000) if order == "rising" else torch.arange(4000).flip(0)
    items = direction * (1 + steps[:, None] * 2e-7)
    interests = torch.cat([direction, -direction]).view(2, 1, 64)
    assert_exact(interests, items, 50, precision)


def test_duplicates_tie_exactly(precision: str) -> None:
    items = torch.randn(10, 33)[torch.arange(2000) % 10]
    interests = torch.randn(7, 4, 33)
    _, rows = search(interests, items, 150, precision)
    best = true_scores(interests, items[:10]).argmax(1)
    assert torch.equal(rows, torch.from_numpy(best)[:, None] + 10 * torch.arange(150))


def test_norms_of_any_size(precision: str) -> None:
    """Rows from 1e-38 to 1e38 beside each other: scores overflow float32, their order does not."""
    scale = 10.0 ** torch.linspace(-38, 38, 300, dtype=torch.float64)
    items = (torch.nn.functional.normalize(torch.randn(300, 9, dtype=torch.float64), dim=1) * scale[:, None]).float()
    interests = (torch.randn(6, 3, 9) * torch.tensor([1e-38, 1e-20, 1.0, 1e20, 3e37, 0.0])[:, None, None]).float()
    _, rows = search(interests, items, 60, precision)
    truth = true_scores(interests, items)
    for user in range(5):
        expected = np.argsort(-truth[user], kind="stable")[:60]
        error = 1e-15 * np.abs(truth[user, expected])
        assert (np.abs(truth[user, rows[user].numpy()] - truth[user, expected]) <= error).all()
    assert torch.equal(rows[5], torch.arange(60))


@pytest.mark.parametrize("huge", [1e30, 3e38])
def test_overflowing_scores(precision: str, huge: float) -> None:
    items = torch.tensor([[0.1 * huge, 0.0], [huge, 1.0], [-huge, 0.0]])
    scores, rows = search(torch.full((1, 1, 2), huge), items, 3, precision)
    assert scores.tolist() == [[torch.inf, torch.inf, -torch.inf]]
    assert rows.tolist() == [[1, 0, 2]]


def test_zero_vectors(precision: str) -> None:
    items = torch.randn(500, 8)
    items[::3] = 0
    interests = torch.randn(5, 2, 8)
    interests[1] = 0
    interests[2, 1] = 0
    exclude = [[], [0, 1, 5, 499], [], list(range(500)), list(range(499))]
    assert_exact(interests, items, 40, precision, exclude)
    _, rows = search(interests, items, 40, precision, exclude)
    assert rows[1].tolist() == [i for i in range(500) if i not in (0, 1, 5)][:40]
    assert rows[4].tolist() == [499] + [-1] * 39


def test_adversarial_rounding(precision: str) -> None:
    """Values in the middle between two that int8 has, all errors pointing one way: the bound is nearly reached."""
    d = 64
    middle = (torch.arange(d) % 126 + 0.5) / 127
    middle[0] = 1
    signs = torch.randint(0, 2, (300, d)) * 2.0 - 1
    items = middle * signs * (1 + torch.randn(300, 1) * 1e-3)
    interests = (middle * signs[:6])[:, None, :] * torch.tensor([[1.0], [0.999]])
    assert_exact(interests, items, 10, precision)


@pytest.mark.parametrize("where", ["interests", "items"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(isa_level: str, where: str, value: float) -> None:
    inputs = {"interests": torch.randn(70, 3, 5), "items": torch.randn(300, 5)}
    inputs[where].view(-1, 5)[-1, 2] = value
    with pytest.raises(ValueError, match=rf"{where} \[.*\] must be finite"):
        top_k(**inputs, k=3)


def test_half_types(precision: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        interests, items = torch.randn(9, 4, 37).to(dtype), torch.randn(400, 37).to(dtype)
        widened = search(interests.float(), items.float(), 30, precision)
        for ours, expected in zip(search(interests, items, 30, precision), widened, strict=True):
            assert torch.equal(ours, expected)


def test_the_same_bits_everywhere() -> None:
    """At every level, at every precision, on 1, 2 and 4 threads, and for users together or alone."""
    interests, items = torch.randn(150, 8, 24), torch.randn(20_000, 24)
    exclude = [list(range(user)) for user in range(150)]
    expected = search(interests, items, 50, "float32", exclude)
    threads, before = torch.get_num_threads(), torch.ops.cmi_fast.isa_level()
    try:
        for level, precision in levels_and_precisions():
            _native.set_isa_level(level)
            for count in (1, 2, 4):
                torch.set_num_threads(count)
                for ours, one in zip(search(interests, items, 50, precision, exclude), expected, strict=True):
                    assert torch.equal(ours, one)
            alone = search(interests[-1:], items, 50, precision, exclude[-1:])
            assert all(torch.equal(ours, one[-1:]) for ours, one in zip(alone, expected, strict=True))
    finally:
        torch.set_num_threads(threads)
        _native.set_isa_level(before)


def test_more_items_than_are_packed_at_a_time(precision: str) -> None:
    """Several chunks of 16 MB: the lists go on from one to the next."""
    items = torch.randn(9000, 1024)
    items[-1] = 3 * items[-2]
    interests = items[[0, 4500, 8998]].unsqueeze(1)
    _, rows = search(interests, items, 2, precision)
    assert rows[:, 0].tolist() == [0, 4500, 8999]
    assert_exact(interests, items, 2, precision)


def test_agrees_with_the_reference_in_float64() -> None:
    interests, items = torch.randn(40, 8, 64), torch.randn(5000, 64)
    scores, rows = top_k(interests, items, 50, backend="cpu")
    expected_scores, expected_rows = top_k(interests.double(), items.double(), 50)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(scores, expected_scores.float(), rtol=2e-7, atol=0)


def test_compiles() -> None:
    interests, items = torch.randn(3, 2, 4), torch.randn(50, 4)
    offsets, ids = torch.tensor([0, 1, 1, 2]), torch.tensor([4, 5])
    torch.library.opcheck(
        torch.ops.cmi_fast.top_k.default, (interests, items, 5, offsets, ids, "auto"),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_a_precision_that_is_none() -> None:
    with pytest.raises(RuntimeError, match="precision must be auto, float32"):
        search(torch.ones(1, 1, 2), torch.ones(1, 2), 1, "int4")
