"""The paired bootstrap against formulas for the mean's error, and what its interval must hold."""

from __future__ import annotations

import numpy as np
import pytest

from cmi_fast.evaluation import paired, paired_bootstrap


def test_equals_a_literal_loop() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 30))
    users = rng.integers(0, 9, 30)
    found = paired_bootstrap(a, b, users, resamples=200, level=0.8, seed=5)
    ids = np.unique(users)
    differences = []
    for drawn in np.random.default_rng(5).integers(len(ids), size=(200, len(ids)), dtype=np.int32):
        entries = np.concatenate([np.flatnonzero(users == ids[user]) for user in drawn])
        differences.append(a[entries].mean() - b[entries].mean())
    assert (found.mean_a, found.mean_b) == (a.mean(), b.mean())
    assert found.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert [found.low, found.high] == pytest.approx(np.quantile(differences, [0.1, 0.9]), abs=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(2).random((2, 64))
    whole = paired_bootstrap(a, b, resamples=100)
    monkeypatch.setattr(paired, "DRAWS_AT_ONCE", 8 * 64)
    assert paired_bootstrap(a, b, resamples=100) == whole
    assert paired_bootstrap(a, b, resamples=100, seed=1) != whole


def test_width_is_the_standard_error() -> None:
    """Entries of 2,000 users: 1.96 standard errors to each side; pairing takes out what both share."""
    rng = np.random.default_rng(3)
    shared, a, b = rng.normal(size=(3, 2000))
    found = paired_bootstrap(10 * shared + a, 10 * shared + b)
    half = 1.96 * np.std(a - b) / np.sqrt(2000)
    assert found.high - found.difference == pytest.approx(half, rel=0.05)
    assert found.difference - found.low == pytest.approx(half, rel=0.05)


def test_days_of_one_user_are_no_evidence_of_their_own() -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 500))
    users = np.arange(500)
    once = paired_bootstrap(a, b, users)
    often = paired_bootstrap(np.tile(a, 4), np.tile(b, 4), np.tile(users, 4))
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-12)
    apart = paired_bootstrap(np.tile(a, 4), np.tile(b, 4))
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 2, rel=0.05)


def test_nineteen_in_twenty_intervals_hold_the_true_difference() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        found = paired_bootstrap(rng.random(200) < 0.3, rng.random(200) < 0.2, resamples=400)
        held += found.low <= 0.1 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_significance() -> None:
    rng = np.random.default_rng(6)
    a = rng.random(300)
    same = paired_bootstrap(a, a)
    assert (same.difference, same.low, same.high, same.significant) == (0, 0, 0, False)
    assert paired_bootstrap(a + 0.1, a).significant
    assert paired_bootstrap(a, a + 0.1).significant
    assert not paired_bootstrap(a, rng.permutation(a)).significant


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], [1]), {}, r"a and b must have the same shape \[n\], n >= 1, got \[2\] and \[1\]"),
        (([], []), {}, "n >= 1"),
        (([[1]], [[1]]), {}, "n >= 1"),
        (([1, 2], [1, np.nan]), {}, "b must hold finite numbers, entry 1 is nan"),
        (([1, 2], [1, 2], [7]), {}, r"users must have the shape of a, \[2\], got \[1\]"),
        (([1], [2]), {"resamples": 0}, "resamples must be at least 1, got 0"),
        (([1], [2]), {"level": 1.0}, "level must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(*arguments, **options)
