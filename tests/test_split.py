"""The split by day: every play in one part, order kept, targets distinct, and what cannot be split."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_logs import PARQUET, needs_real_logs

from cmi_fast.data import Histories, Interactions
from cmi_fast.errors import InputError

PLAYS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 3)), max_size=60)


def log_of(plays: list[tuple[int, int, int]]) -> Interactions:
    """Interactions of (user, item, day) plays, each later than the one before it on the same day."""
    users, items, days = zip(*plays, strict=True)
    times = [1_650_000_000 + 86_400 * day + row for row, day in enumerate(days)]
    return Interactions.from_frame(pl.DataFrame({"user_id": users, "item_id": items, "day": days, "timestamp": times}))


def lists(histories: Histories, item_ids: np.ndarray) -> list[list[int]]:
    return [item_ids[histories[user]].tolist() for user in range(len(histories))]


def test_split_by_hand() -> None:
    training = [(1, 10, 5), (1, 11, 5), (1, 10, 6), (2, 12, 5)]
    valid = [(1, 13, 7), (1, 13, 7), (1, 11, 7)]
    test = [(3, 14, 8), (2, 12, 8), (2, 11, 8), (2, 12, 8)]
    split = log_of([*training, *valid, *test]).split()
    item_ids = split.interactions.item_ids
    assert [set(part.days.tolist()) for part in split.parts()] == [{5, 6}, {7}, {8}]
    assert (split.num_users, split.num_items) == (3, 5)
    assert lists(split.train, item_ids) == [[10, 11, 10], [12], []]
    assert split.train_days.tolist() == [5, 5, 6, 5]
    assert lists(split.before_test, item_ids) == [[10, 11, 10, 13, 13, 11], [12], []]
    assert lists(split.valid, item_ids) == [[13, 11], [], []]
    assert lists(split.test, item_ids) == [[], [12, 11], [14]]
    assert item_ids[split.catalogue].tolist() == [10, 11, 12]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(PLAYS)
def test_every_play_is_in_exactly_one_part_and_in_order(plays: list[tuple[int, int, int]]) -> None:
    log = log_of([*plays, (0, 0, 0), (0, 0, 2), (0, 0, 3)])
    split = log.split()
    for user in range(split.num_users):
        mine = log.users == user
        days, items = log.days[mine], log.items[mine]
        np.testing.assert_array_equal(split.train[user], items[days < 2])
        np.testing.assert_array_equal(split.before_test[user], items[days < 3])
        assert split.valid[user].tolist() == list(dict.fromkeys(items[days == 2].tolist()))
        assert split.test[user].tolist() == list(dict.fromkeys(items[days == 3].tolist()))
    np.testing.assert_array_equal(split.train_days, log.days[log.days < 2])
    np.testing.assert_array_equal(np.flatnonzero(split.catalogue), np.unique(log.items[log.days < 2]))
    assert split.train.items.dtype == split.test.items.dtype == split.train_days.dtype == np.int32
    assert split.train.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("days", "message"),
    [
        ([4], "found plays on 1 days, the split needs 3"),
        ([4, 5, 5], "found plays on 2 days, the split needs 3"),
        (
            [1, 2, 3, 7],
            "no plays on day 6, the valid day before test day 7: the last days with plays are 3 and 7",
        ),
    ],
)
def test_logs_that_cannot_be_split(days: list[int], message: str) -> None:
    log = log_of([(1, 1, day) for day in days])
    with pytest.raises(InputError, match=message):
        log.split()


@needs_real_logs
def test_real_log() -> None:
    split = Interactions.read(PARQUET).split()
    assert [set(part.days.tolist()) for part in split.parts()] == [set(range(13)), {13}, {14}]
    assert np.count_nonzero(split.test.lengths) == 2638
    assert np.count_nonzero(split.interactions.days == 14) == 3490


def test_split_by_last_plays() -> None:
    """User 1 has four plays, user 2 three, user 3 two and user 4 one: too few to hold any out."""
    log = log_of(
        [
            (1, 10, 0),
            (1, 11, 0),
            (1, 12, 0),
            (1, 10, 3),
            (2, 10, 1),
            (2, 11, 1),
            (2, 14, 1),
            (3, 9, 0),
            (3, 8, 0),
            (4, 7, 0),
        ]
    )
    split = log.split("last")
    ids = log.item_ids
    assert lists(split.train, ids) == [[10, 11], [10], [9, 8], [7]]
    assert lists(split.valid, ids) == [[12], [11], [], []]
    assert lists(split.test, ids) == [[10], [14], [], []]
    assert lists(split.before_test, ids) == [[10, 11, 12], [10, 11], [9, 8], [7]]
    assert split.training_end == 2
    assert ids[split.catalogue].tolist() == [7, 8, 9, 10, 11]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.2, 0.3)]))
def test_split_by_shares(counts: list[int], shares: tuple[float, float, float]) -> None:
    counts = [*counts, 20]
    log = log_of([(user, item, item % 4) for user, count in enumerate(counts) for item in range(count)])
    split = log.split("ratio:" + ",".join(map(str, shares)))
    for user, count in enumerate(counts):
        part = split.part[log.users == user]
        assert part.tolist() == sorted(part.tolist())
        held = [int(count * share + 1e-9) for share in shares[1:]]
        assert np.bincount(part, minlength=3)[1:].tolist() == held
    assert (log.split("ratio").part == log.split("ratio:0.8,0.1,0.1").part).all()


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("week", "split 'week': expected day, last, ratio or ratio:TRAIN,VALID,TEST"),
        ("last:3", "split 'last:3': expected day"),
        ("ratio:0.5", "split 'ratio:0.5': expected day"),
        ("ratio:a,b,c", "split 'ratio:a,b,c': expected day"),
        ("ratio:0.5,0.1,0.1", "three shares above 0 that add up to 1"),
        ("ratio:1,0,0", "three shares above 0 that add up to 1"),
        ("ratio:nan,0.5,0.5", "three shares above 0 that add up to 1"),
        ("last", "a split by last plays needs users with 3 plays or more"),
        ("ratio", "users have 2 plays at most, too few for shares"),
    ],
)
def test_splits_that_cannot_be(by: str, message: str) -> None:
    log = log_of([(1, 1, 0), (1, 2, 1), (2, 1, 2)])
    with pytest.raises(InputError, match=message):
        log.split(by)
