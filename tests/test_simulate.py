"""The simulated log: its columns and ranges, and the structure that models are to find in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cmi_fast.data.simulate import simulate, write_simulation
from cmi_fast.errors import InputError

FIRST_DAY = 1_704_067_200_000
DAY = 86_400_000


@pytest.fixture(scope="module")
def drawn() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulate(users=1000, items=2001, days=7, seed=3)


def categories_of(log: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
    return truth["category"].to_numpy()[log["item_id"].to_numpy()]


def test_columns_and_ranges(drawn: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    log, truth = drawn
    assert log.schema == {
        "user_id": pl.Int64,
        "item_id": pl.Int64,
        "timestamp": pl.Int64,
        "day": pl.Int32,
    }
    assert log["timestamp"].is_sorted()
    assert log.null_count().sum_horizontal().item() == 0
    assert set(log["user_id"]) == set(range(1000))
    assert log["item_id"].is_between(0, 2000).all()
    assert ((log["timestamp"] - FIRST_DAY) // DAY).to_list() == log["day"].to_list()
    assert set(log["day"]) == set(range(7))
    assert truth.columns == ["item_id", "category"]
    assert truth["item_id"].to_list() == list(range(2001))
    sizes = np.bincount(truth["category"])
    assert len(sizes) == 8 and sizes.max() - sizes.min() <= 1


def test_same_seed_same_log_another_seed_another_log(drawn: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    log, truth = simulate(users=1000, items=2001, days=7, seed=3)
    assert log.equals(drawn[0]) and truth.equals(drawn[1])
    other_log, other_truth = simulate(users=1000, items=2001, days=7, seed=4)
    assert not other_log.equals(log) and not other_truth.equals(truth)


def test_plays_per_user_has_the_mean_asked_for_and_varies() -> None:
    log, _ = simulate(users=5000, items=2000, days=3, plays_per_user=30)
    counts = np.bincount(log["user_id"])
    assert counts.mean() == pytest.approx(30, rel=0.05)
    assert np.median(counts) < 27 and counts.min() >= 1


def test_users_have_two_to_four_interests_and_noise_the_share_asked_for() -> None:
    log, truth = simulate(users=300, items=2000, days=7, noise=0, plays_per_user=400)
    table = np.zeros((300, 8))
    np.add.at(table, (log["user_id"].to_numpy(), categories_of(log, truth)), 1)
    interests = (table > 0).sum(1)
    assert interests.max() == 4 and (interests >= 2).mean() > 0.95

    noisy, truth = simulate(users=300, items=2000, days=7, noise=1, plays_per_user=400)
    shares = np.bincount(categories_of(noisy, truth)) / noisy.height
    np.testing.assert_allclose(shares, 1 / 8, atol=0.01)


def test_sessions_tend_to_stay_in_one_category(drawn: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    log, truth = drawn
    frame = log.with_columns(category=pl.Series(categories_of(log, truth))).sort("user_id", maintain_order=True)
    user, time, category = (frame[c].to_numpy() for c in ("user_id", "timestamp", "category"))
    near = (np.diff(user) == 0) & (np.diff(time) < 60_000)
    far = (np.diff(user) == 0) & (np.diff(time) > 3_600_000)
    stays = np.diff(category) == 0
    assert stays[near].mean() > stays[far].mean() + 0.15
    assert 4 < len(user) / (far.sum() + 1000) < 8  # plays a session


def test_popularity_follows_the_exponent() -> None:
    log, truth = simulate(
        users=2000, items=800, days=3, noise=1, plays_per_user=20, popularity_exponent=0.7, session_length=1
    )
    counts = np.bincount(log["item_id"], minlength=800)
    for category in range(8):
        ranked = np.sort(counts[truth["category"] == category])[::-1]
        slope = np.polyfit(np.log(np.arange(1, 81)), np.log(ranked[:80]), 1)[0]
        assert slope == pytest.approx(-0.7, abs=0.12)


def test_repeats_are_rare_but_small_catalogues_work(drawn: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    log, _ = drawn
    assert log.unique(["user_id", "item_id"]).height > 0.98 * log.height
    tiny, truth = simulate(users=3, items=8, days=3, plays_per_user=200)
    assert truth.height == 8 and set(tiny["item_id"]) <= set(range(8))


def test_what_a_user_has_seen_is_not_shown_again_so_later_plays_are_less_popular() -> None:
    log, _ = simulate(users=1000, items=400, days=7, plays_per_user=60)
    popularity = np.bincount(log["item_id"])[log["item_id"].to_numpy()]
    first_days, last_days = (log["day"] < 3).to_numpy(), (log["day"] > 3).to_numpy()
    assert popularity[first_days].mean() > 1.05 * popularity[last_days].mean()


def test_ids_tell_nothing_of_category_or_popularity(drawn: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    log, truth = drawn
    ids = np.arange(truth.height)
    counts = np.bincount(log["item_id"], minlength=truth.height)
    assert abs(np.corrcoef(ids, truth["category"])[0, 1]) < 0.08
    assert abs(np.corrcoef(ids, counts)[0, 1]) < 0.08
    same_as_neighbour = np.diff(truth["category"]) == 0
    assert same_as_neighbour.mean() == pytest.approx(1 / 8, abs=0.03)


def test_a_category_aware_ranking_beats_popularity() -> None:
    log, truth = simulate()
    train, test = log.filter(pl.col("day") < 13), log.filter(pl.col("day") == 13)
    assert 30 <= log.height / 2000 <= 60
    category = truth["category"].to_numpy()
    seen = np.zeros((2000, 5000), bool)
    seen[train["user_id"], train["item_id"]] = True
    popularity = seen.sum(0).astype(float)
    taste = seen @ np.eye(8)[category] + 0.5  # [U, 8]
    share_in_category = popularity / np.bincount(category, popularity)[category]
    general = recall_at_50(np.broadcast_to(popularity, seen.shape), seen, test)
    aware = recall_at_50((taste / taste.sum(1, keepdims=True))[:, category] * share_in_category, seen, test)
    assert 0.06 < general < 0.16
    assert aware > 1.5 * general


def recall_at_50(scores: np.ndarray, seen: np.ndarray, test: pl.DataFrame) -> float:
    """Share of the test plays among the 50 best unseen items of their user."""
    allowed = np.where(seen, -np.inf, scores)
    best = np.argpartition(-allowed, 50, axis=1)[:, :50]
    return float((best[test["user_id"].to_numpy()] == test["item_id"].to_numpy()[:, None]).any(1).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "users: found 0, expected at least 1"),
        ({"items": 7}, "items: found 7, expected at least 8"),
        ({"days": 2}, "days: found 2, expected at least 3"),
        ({"seed": -1}, "seed: found -1"),
        ({"categories": 0}, "categories: found 0"),
        ({"noise": 1.5}, "noise: found 1.5, expected 0 to 1"),
        ({"noise": float("nan")}, "noise: found nan"),
        ({"plays_per_user": 0.5}, "plays_per_user: found 0.5"),
        ({"popularity_exponent": -1}, "popularity_exponent: found -1"),
        ({"session_length": 0}, "session_length: found 0"),
        ({"fewest_interests": 0}, "fewest_interests: found 0, expected at least 1"),
        ({"most_interests": 1}, "most_interests: found 1, expected at least 2"),
        ({"drift": 1.5}, "drift: found 1.5, expected 0 to 1"),
        ({"recency": -0.1}, "recency: found -0.1, expected 0 to 1"),
        ({"overlap": 2}, "overlap: found 2, expected 0 to 1"),
    ],
)
def test_options_out_of_range_are_input_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(**options)


@pytest.mark.parametrize("options", [{"users": 1}, {"items": 8}, {"categories": 1}, {"days": 3}])
def test_smallest_sizes_work(options: dict[str, int]) -> None:
    log, truth = simulate(**({"users": 20, "items": 50, "days": 5} | options))
    assert log.height >= 1 and truth.height >= 8


def test_writes_log_and_truth_side_by_side(tmp_path: Path) -> None:
    target = tmp_path / "toy.parquet"
    log, truth = write_simulation(target, users=10, items=20, days=3, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.parquet", "toy.truth.parquet"]
    assert pl.read_parquet(target).equals(log)
    assert pl.read_parquet(tmp_path / "toy.truth.parquet").equals(truth)
    assert log.equals(simulate(users=10, items=20, days=3, seed=1)[0])


def test_a_refused_simulation_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        write_simulation(tmp_path / "nowhere" / "toy.parquet")
    with pytest.raises(InputError, match=r"\.csv"):
        write_simulation(tmp_path / "toy.csv")
    with pytest.raises(InputError, match="users"):
        write_simulation(tmp_path / "toy.parquet", users=0)
    assert list(tmp_path.iterdir()) == []


def test_the_default_log_is_that_of_the_first_version() -> None:
    """Its bits, from before the options on interests, drift, recency and overlap."""
    log, _ = simulate(users=100, items=60, days=5, seed=3)
    plays = np.ascontiguousarray(log.select("user_id", "item_id", "timestamp").to_numpy())
    assert hashlib.blake2b(plays, digest_size=8).hexdigest() == "6a523369c990db68"


def category_sequences(**options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, time and category of each play, by user and time, of a log without noise."""
    settings: dict[str, Any] = {"users": 300, "items": 2000, "days": 7, "noise": 0, "plays_per_user": 100} | options
    log, truth = simulate(**settings)
    frame = log.with_columns(category=pl.Series(categories_of(log, truth))).sort("user_id", maintain_order=True)
    return frame["user_id"].to_numpy(), frame["timestamp"].to_numpy(), frame["category"].to_numpy()


def liked(user: np.ndarray, category: np.ndarray) -> np.ndarray:
    """How often each user played each category, [U, C]."""
    table = np.zeros((user.max() + 1, category.max() + 1))
    np.add.at(table, (user, category), 1)
    return table


def test_number_of_interests_and_categories() -> None:
    user, _, category = category_sequences(categories=40, fewest_interests=5, most_interests=6, plays_per_user=800)
    assert category.max() == 39
    interests = (liked(user, category) > 0).sum(1)
    assert interests.max() == 6 and np.median(interests) >= 5


def test_drift_replaces_a_users_interests() -> None:
    def kept(drift: float) -> float:
        """The share of a user's last plays that are in a category of the first ones."""
        user, _, category = category_sequences(categories=40, drift=drift, plays_per_user=400)
        first = np.flatnonzero(np.diff(user, prepend=-1))
        ends = np.append(first[1:], len(user))
        long = [(a, b) for a, b in zip(first, ends, strict=True) if b - a >= 200]
        return float(np.mean([np.isin(category[b - 50 : b], category[a : a + 50]).mean() for a, b in long]))

    assert kept(0) > 0.95
    assert kept(1) < 0.4  # eight sessions of other interests are among the first 50 plays
    # The first session has interests of its own; every other one differs from it.
    assert kept(1) < kept(0.01) < kept(0)


def test_recency_lets_a_session_go_on_with_the_last_ones_interest() -> None:
    def goes_on(recency: float) -> float:
        user, time, category = category_sequences(recency=recency)
        between = (np.diff(user) == 0) & (np.diff(time) > 3_600_000)
        return float((np.diff(category) == 0)[between].mean())

    assert goes_on(1) == pytest.approx(1 - 0.15 * 0.5, abs=0.05)  # a change as before any other play
    assert goes_on(0) < goes_on(0.5) < goes_on(1) - 0.1


def test_overlap_is_the_share_that_falls_into_the_next_category() -> None:
    only = {"fewest_interests": 1, "most_interests": 1, "plays_per_user": 300, "items": 8000}
    user, _, category = category_sequences(overlap=0.3, **only)
    table = liked(user, category)
    own = table.argmax(1)
    rows = np.arange(len(table))
    next_share = table[rows, (own + 1) % 8].sum() / table.sum()
    assert next_share == pytest.approx(0.3, abs=0.02)
    assert table[rows, own].sum() + table[rows, (own + 1) % 8].sum() == table.sum()
