"""Encoding: the same order as a plain sort, whatever the ids and times."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cmi_fast.data.encode import encode


@pytest.mark.parametrize("spread", [1, 10**12])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_equals_a_plain_sort(spread: int, text: bool, ordered: bool) -> None:
    rng = np.random.default_rng(0)
    users, items = (rng.integers(-50, 50, 3000) * spread for _ in range(2))
    times = np.sort(rng.integers(0, 900, 3000)) if ordered else rng.integers(0, 900, 3000)
    ids = [str(item) for item in items] if text else items
    frame = pl.DataFrame({"user_id": users, "item_id": ids, "day": (times // 100).astype(np.int32), "time": times})
    expected = frame.sort("user_id", "time", maintain_order=True)
    plays = encode(frame.clone())
    assert plays.user_ids.tolist() == sorted(set(users.tolist()))
    assert plays.item_ids.tolist() == sorted(set(expected["item_id"].to_list()))
    assert plays.user_ids[plays.users].tolist() == expected["user_id"].to_list()
    assert plays.item_ids[plays.items].tolist() == expected["item_id"].to_list()
    assert plays.times.tolist() == expected["time"].to_list() and plays.days.tolist() == expected["day"].to_list()
    assert [a.dtype for a in (plays.users, plays.items, plays.days, plays.times)] == [np.int32] * 3 + [np.int64]
