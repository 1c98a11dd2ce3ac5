"""The guarantees of the batch sampler, on random logs."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cmi_fast.data.histories import Histories
from cmi_fast.data.sampler import Batch, BatchSampler
from cmi_fast.errors import InputError

NUM_ITEMS = 12
plays = st.lists(st.integers(0, NUM_ITEMS - 3), max_size=15)
logs = st.lists(plays, min_size=1, max_size=8).filter(lambda log: any(len(user) > 1 for user in log))
# The last two items are never played; the last one can be recommended, so everybody has a negative.
catalogues = st.lists(st.booleans(), min_size=NUM_ITEMS - 1, max_size=NUM_ITEMS - 1).map(lambda c: [*c, True])
properties = settings(deadline=None, max_examples=50, derandomize=True)


def histories(log: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, log)])
    return Histories(offsets, np.array([item for user in log for item in user], np.int32))


def sampler(log: list[list[int]], catalogue: list[bool] | None = None, **options: object) -> BatchSampler:
    allowed = np.ones(NUM_ITEMS, bool) if catalogue is None else np.array(catalogue)
    return BatchSampler(histories(log), allowed, **({"batch_size": 4} | options))  # type: ignore[arg-type]


def samples(batches: list[Batch]) -> Counter[tuple[int, tuple[int, ...], int]]:
    """(user, history, positive) of every sample."""
    return Counter(
        (int(user), tuple(history[:length].tolist()), int(positive))
        for b in batches
        for user, history, length, positive in zip(b.users, b.history, b.lengths, b.positives, strict=True)
    )


def expected_samples(log: list[list[int]], max_history: int) -> Counter[tuple[int, tuple[int, ...], int]]:
    return Counter(
        (user, tuple(items[max(0, i - max_history) : i]), items[i])
        for user, items in enumerate(log)
        for i in range(1, len(items))
    )


def equal(first: Batch, second: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


@properties
@given(logs, st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**70))
def test_an_epoch_visits_every_sample_once_with_the_plays_just_before_it(
    log: list[list[int]], max_history: int, batch_size: int, seed: int
) -> None:
    under_test = sampler(log, max_history=max_history, batch_size=batch_size, seed=seed)
    batches = list(under_test.epoch(0))
    expected = expected_samples(log, max_history)
    assert samples(batches) == expected
    assert under_test.num_samples == expected.total()
    sizes = [len(b.users) for b in batches]
    assert len(batches) == len(under_test)
    assert all(size == batch_size for size in sizes[:-1]) and 1 <= sizes[-1] <= batch_size


@properties
@given(logs, st.integers(1, 20), st.booleans())
def test_shapes_types_and_padding(log: list[list[int]], max_history: int, disjoint: bool) -> None:
    for b in sampler(log, max_history=max_history, disjoint_views=disjoint).epoch(1):
        size, longest = len(b.users), b.lengths.max()
        assert b.history.shape == (size, longest) and b.views.shape == (2, size, longest)
        assert b.views.dtype == bool
        for name, array in vars(b).items():
            assert array.flags.c_contiguous, name
            assert name == "views" or array.dtype == np.int64, name
        padding = np.arange(longest) >= b.lengths[:, None]
        assert not b.history[padding].any() and not b.views[:, padding].any()


@properties
@given(logs, st.integers(1, 20), st.floats(0.01, 1))
def test_independent_views_have_the_size_asked_for(log: list[list[int]], max_history: int, share: float) -> None:
    for b in sampler(log, max_history=max_history, view_share=share).epoch(0):
        expected = [max(1, min(floor(share * length), max_history)) for length in b.lengths.tolist()]
        assert b.views.sum(-1).tolist() == [expected, expected]


@properties
@given(logs, st.integers(1, 20))
def test_disjoint_views_split_the_history_in_halves(log: list[list[int]], max_history: int) -> None:
    for b in sampler(log, max_history=max_history, disjoint_views=True).epoch(0):
        first, second = b.views
        alone = b.lengths == 1
        assert (first | second).sum(1).tolist() == b.lengths.tolist()
        assert (first & second).sum(1).tolist() == alone.tolist()
        assert first.sum(1).tolist() == np.maximum(b.lengths // 2, 1).tolist()


@properties
@given(logs, catalogues)
def test_negatives_are_recommendable_and_never_played(log: list[list[int]], catalogue: list[bool]) -> None:
    for b in sampler(log, catalogue).epoch(0):
        for user, negative in zip(b.users.tolist(), b.negatives.tolist(), strict=True):
            assert catalogue[negative] and negative not in log[user]


@properties
@given(logs, st.integers(0, 3), st.integers(1, 3), st.sampled_from([None, 1, 2]), st.data())
def test_any_batch_can_be_drawn_directly(
    log: list[list[int]], epoch: int, batch_size: int, samples_per_user: int | None, data: st.DataObject
) -> None:
    options = {"batch_size": batch_size, "samples_per_user": samples_per_user, "seed": 5}
    used, fresh = sampler(log, **options), sampler(log, **options)
    in_order = [list(used.epoch(e)) for e in range(epoch + 1)][-1]
    start = data.draw(st.integers(0, len(used)))
    resumed = list(fresh.epoch(epoch, start))
    assert len(resumed) == len(in_order) - start
    assert all(equal(a, b) for a, b in zip(in_order[start:], resumed, strict=True))


@properties
@given(logs, st.integers(1, 16), st.integers(0, 2))
def test_samples_per_user_are_distinct_and_as_many_as_there_are(
    log: list[list[int]], samples_per_user: int, epoch: int
) -> None:
    under_test = sampler(log, samples_per_user=samples_per_user)
    drawn = samples(list(under_test.epoch(epoch)))
    assert drawn <= expected_samples(log, 100)
    by_user = Counter(dict.fromkeys(range(len(log)), 0))
    for (user, _, _), count in drawn.items():
        by_user[user] += count
    assert [by_user[u] for u in range(len(log))] == [min(max(len(p) - 1, 0), samples_per_user) for p in log]
    assert under_test.num_samples == drawn.total()


def test_seeds_and_epochs_differ_in_order_views_and_negatives() -> None:
    log = [[i % 9 for i in range(60)]] * 5
    base = next(sampler(log, batch_size=400).epoch(0))
    for other in (sampler(log, batch_size=400).epoch(1), sampler(log, batch_size=400, seed=1).epoch(0)):
        b = next(other)
        assert not np.array_equal(b.users, base.users)
        assert not np.array_equal(b.views[:, :, :10], base.views[:, :, :10])
        assert not np.array_equal(b.negatives, base.negatives)


def test_order_is_uniform() -> None:
    under_test = sampler([[0, 1, 2, 3]])  # three samples, six orders
    orders = Counter(tuple(next(under_test.epoch(e)).positives.tolist()) for e in range(1200))
    assert len(orders) == 6
    assert chisquare(list(orders.values())).pvalue > 0.01


def test_samples_per_user_are_uniform() -> None:
    under_test = sampler([[], [0, 1, 2, 3, 4], [5]], samples_per_user=2)
    pairs = Counter(tuple(sorted(next(under_test.epoch(e)).positives.tolist())) for e in range(1200))
    assert set(pairs) == set(combinations(range(1, 5), 2))
    assert chisquare(list(pairs.values())).pvalue > 0.01


def view_codes(disjoint: bool) -> np.ndarray:
    """Views [2, n] of histories of four items, as numbers 0 ... 15."""
    under_test = sampler([[0] * 30] * 400, batch_size=512, max_history=4, disjoint_views=disjoint)
    views = np.concatenate([b.views[:, b.lengths == 4] for b in under_test.epoch(0)], axis=1)
    return views @ (1 << np.arange(4))


def test_views_are_independent_uniform_subsets() -> None:
    first, second = view_codes(disjoint=False)
    pairs = np.bincount(first * 16 + second, minlength=256)
    assert np.count_nonzero(pairs) == 36  # (4 choose 2) subsets each
    assert chisquare(pairs[pairs > 0]).pvalue > 0.01


def test_disjoint_views_are_uniform_and_complementary() -> None:
    first, second = view_codes(disjoint=True)
    assert (first + second == 15).all()
    subsets = np.bincount(first)
    assert np.count_nonzero(subsets) == 6
    assert chisquare(subsets[subsets > 0]).pvalue > 0.01


def test_negatives_are_uniform_over_what_is_left() -> None:
    log = [[], [1, 5, 1, 9] * 500, [0], [0, 1, 2, 11] * 500]
    catalogue = [item not in (2, 6) for item in range(NUM_ITEMS)]
    drawn = list(sampler(log, catalogue, batch_size=512).epoch(0))
    users, negatives = (np.concatenate([getattr(b, name) for b in drawn]) for name in ("users", "negatives"))
    for user in (1, 3):
        counts = np.bincount(negatives[users == user], minlength=NUM_ITEMS)
        left = [item for item in range(NUM_ITEMS) if catalogue[item] and item not in log[user]]
        assert np.flatnonzero(counts).tolist() == left
        assert chisquare(counts[left]).pvalue > 0.01


@pytest.mark.parametrize("left", [0, 6, 11])
def test_the_one_item_left_is_found(left: int) -> None:
    played = [item for item in range(NUM_ITEMS) if item != left]
    assert all((b.negatives == left).all() for b in sampler([played[::-1]]).epoch(0))


def test_users_with_fewer_than_two_plays_give_no_samples_and_need_no_negative() -> None:
    catalogue = [item in (0, 1) for item in range(NUM_ITEMS)]
    under_test = sampler([[], [0], [], [1, 1], []], catalogue)
    (batch,) = under_test.epoch(0)
    assert samples([batch]) == Counter([(3, (1,), 1)])
    assert batch.views.all() and batch.negatives.tolist() == [0]


def test_a_user_who_played_everything_gives_no_samples() -> None:
    under_test = sampler([[0, 1], list(range(NUM_ITEMS)), [0]])
    (batch,) = under_test.epoch(0)
    assert batch.users.tolist() == [0]


def test_an_empty_catalogue_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no user with two plays and an item never played"):
        sampler([[0, 1]], [False] * NUM_ITEMS)


@pytest.mark.parametrize("log", [[], [[]], [[0], [], [1]]])
def test_a_log_without_samples_is_an_input_error(log: list[list[int]]) -> None:
    with pytest.raises(InputError, match="no user with two plays"):
        sampler(log)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("max_history", 0),
        ("seed", -1),
        ("samples_per_user", 0),
        ("view_share", 0.0),
        ("view_share", 1.5),
        ("view_share", float("nan")),
    ],
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option}: found {value}"):
        sampler([[0, 1]], **{option: value})
