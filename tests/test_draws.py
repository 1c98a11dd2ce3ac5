"""The sampler's random numbers: SplitMix64, a permutation, and the compiled draws equal to their definition."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cmi_fast.data import draws
from cmi_fast.data.compiled import compiled
from cmi_fast.data.distinct import distinct, distinct_items
from cmi_fast.data.histories import Histories
from cmi_fast.data.prefetch import prefetch
from cmi_fast.data.sampler import Batch, BatchSampler

needs_compiled = pytest.mark.skipif(compiled is None, reason="no compiled sampler")


def random_histories(users: int, items: int, longest: int, seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(users), rng.integers(0, longest + 1, users))
    return Histories.group(owners, rng.integers(0, items, len(owners)), users)


def assert_equal(first: Batch, second: Batch) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert value.dtype == other.dtype and np.array_equal(value, other), name


def test_words_are_splitmix64() -> None:
    """The published generator's first outputs for the seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert draws.words(1234567, np.arange(4)).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 2**31 - 1, 2**40 + 1])
def test_the_largest_and_smallest_word_stay_in_range(n: int) -> None:
    extremes = np.array([0, 2**64 - 1], np.uint64)
    assert draws.below(extremes, n).tolist() == [0, n - 1]


@pytest.mark.parametrize("n", [1, 2, 3, 100, 1023])
def test_permuted_is_a_permutation(n: int) -> None:
    for key in range(5):
        assert sorted(draws.permuted(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutations_are_uniform() -> None:
    """Of four numbers all 24 orders, and where a thousand put the first hundred."""
    keys = draws.words(5, np.arange(24_000))
    orders = np.stack([draws.permuted(np.full(len(keys), x), 4, keys) for x in range(4)], axis=1)
    counts = Counter(map(tuple, orders.tolist()))
    assert set(counts) == set(permutations(range(4)))
    assert chisquare(list(counts.values())).pvalue > 0.01
    images = np.concatenate([draws.permuted(np.arange(100), 1000, key) for key in range(1000)])
    assert chisquare(np.bincount(images, minlength=1000)).pvalue > 0.01


@needs_compiled
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.tuples(st.integers(1, 30), st.integers(3, 60), st.integers(2, 40), st.integers(0, 2**32)),
    st.fixed_dictionaries(
        {
            "batch_size": st.integers(1, 50),
            "max_history": st.integers(1, 45),
            "view_share": st.floats(0.01, 1),
            "samples_per_user": st.none() | st.integers(1, 5),
            "disjoint_views": st.booleans(),
            "seed": st.integers(0, 2**70),
        }
    ),
    st.integers(0, 2**40),
)
def test_compiled_batches_equal_the_definition(log: tuple[int, ...], options: dict[str, Any], epoch: int) -> None:
    train = random_histories(*log)
    catalogue = np.random.default_rng(log[3]).random(log[1] + 1) < 0.7
    catalogue[-1] = True  # never played
    if not (train.lengths > 1).any():
        return
    defined, under_test = (BatchSampler(train, catalogue, backend=b, **options) for b in ("reference", "cpu"))
    for first, second in zip(defined.epoch(epoch), under_test.epoch(epoch), strict=True):
        assert_equal(first, second)


@needs_compiled
@pytest.mark.parametrize("samples_per_user", [None, 20])
def test_long_histories_and_a_large_catalogue_are_drawn_as_defined(samples_per_user: int | None) -> None:
    train = random_histories(300, 10_000_000, 250, 0)
    defined, under_test = (
        BatchSampler(
            train, np.ones(10_000_000, bool), batch_size=512, samples_per_user=samples_per_user, backend=backend
        )
        for backend in ("reference", "cpu")
    )
    for index in (0, len(defined) // 2, len(defined) - 1):
        assert_equal(defined.batch(3, index), under_test.batch(3, index))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_batches_do_not_depend_on_threads(threads: int) -> None:
    train = random_histories(200, 500, 60, 1)
    under_test = BatchSampler(train, np.ones(500, bool), batch_size=64, seed=2)
    expected = list(under_test.epoch(0))
    ahead = list(prefetch(lambda index: under_test.batch(0, index), range(len(under_test)), threads=threads))
    for first, second in zip(expected, ahead, strict=True):
        assert_equal(first, second)
    with ThreadPoolExecutor(threads) as executor:  # all of them the same batch at once
        for batch in executor.map(lambda _: under_test.batch(0, 1), range(8)):
            assert_equal(expected[1], batch)


@needs_compiled
def test_memory_maps_are_read_where_they_are(tmp_path: Path) -> None:
    train = random_histories(50, 100, 30, 3)
    np.save(tmp_path / "offsets.npy", train.offsets)
    np.save(tmp_path / "items.npy", train.items)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("offsets", "items")]
    mapped = BatchSampler(Histories(*maps), np.ones(100, bool), batch_size=64, backend="cpu")
    in_memory = BatchSampler(train, np.ones(100, bool), batch_size=64, backend="cpu")
    assert_equal(mapped.batch(0, 0), in_memory.batch(0, 0))
    changed = np.load(tmp_path / "items.npy", mmap_mode="r+")
    changed[:] = 99  # a copy would not see it
    changed.flush()
    batch = mapped.batch(0, 0)
    assert (batch.positives == 99).all() and (batch.history[batch.history > 0] == 99).all()


@needs_compiled
def test_arrays_of_another_type_are_refused_not_copied() -> None:
    arrays = [np.zeros(2, np.int64)] * 8  # the second, of items, must be int32
    with pytest.raises(TypeError):
        compiled.Draws(*arrays, 1, 0.5, False, False)  # type: ignore[union-attr]


@needs_compiled
@pytest.mark.parametrize(("items", "batch_size"), [(60, 7), (64, 64), (500, 200), (1_000_000, 50)])
def test_the_distinct_items_of_a_batch(items: int, batch_size: int) -> None:
    """Places name the items they stand for, each row is read somewhere, and the padding reads none."""
    assert compiled is not None
    log = random_histories(100, items, 30, 4)
    for batch in BatchSampler(log, np.ones(items, bool), batch_size=batch_size).epoch(0):
        rows, places = distinct_items(batch, items)
        inside = np.arange(batch.history.shape[1]) < batch.lengths[:, None]
        assert np.array_equal(rows[places.history[inside]], batch.history[inside])
        assert np.array_equal(rows[places.positives], batch.positives)
        assert np.array_equal(rows[places.negatives], batch.negatives)
        assert set(rows) == {*batch.history[inside], *batch.positives, *batch.negatives}
        arrays = batch.history, batch.lengths, batch.positives, batch.negatives
        for found, defined in zip(compiled.distinct(*arrays, items), distinct(*arrays), strict=True):
            assert found.dtype == defined.dtype and np.array_equal(found, defined)
