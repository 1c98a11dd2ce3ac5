"""Reading logs: every format and layout gives the same plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import DAY, LOG, START, write, write_text

from cmi_fast.data import Interactions
from cmi_fast.data.formats import SAMPLED_ROWS


def plays(log: Interactions) -> list[tuple[object, object, int, int]]:
    """The plays with their original ids, in order."""
    users, items = log.user_ids[log.users], log.item_ids[log.items]
    return list(zip(users.tolist(), items.tolist(), log.days.tolist(), log.times.tolist(), strict=True))


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz", "LOG.CSV"])
def test_formats_agree(tmp_path: Path, name: str) -> None:
    log = Interactions.read(write(LOG, tmp_path / name))
    assert log.user_ids.tolist() == [-3, 0, 7]
    assert log.item_ids.tolist() == [0, 40, 50]
    assert plays(log) == sorted(LOG.select("user_id", "item_id", "day", "timestamp").rows(), key=lambda p: p[0])
    assert [a.dtype for a in (log.users, log.items, log.days, log.times)] == [np.int32] * 3 + [np.int64]


def test_frame_lazy_and_eager_agree() -> None:
    assert plays(Interactions.from_frame(LOG)) == plays(Interactions.from_frame(LOG.lazy()))


def test_day_splits_and_timestamp_orders() -> None:
    reordered = LOG.with_columns(timestamp=pl.col("timestamp").reverse())
    log = Interactions.from_frame(reordered)
    assert log.days[log.users == 2].tolist() == [5, 4, 3]
    assert log.notes == ("day splits; timestamp in seconds orders",)


def test_day_alone_keeps_file_order_within_a_day() -> None:
    frame = pl.DataFrame({"user_id": [1] * 4, "item_id": [9, 5, 7, 1], "day": [2, 2, 2, 1]})
    log = Interactions.from_frame(frame)
    assert log.item_ids[log.items].tolist() == [1, 9, 5, 7]


@pytest.mark.parametrize(("factor", "unit"), [(1, "seconds"), (1000, "milliseconds")])
def test_utc_days_from_timestamps(factor: int, unit: str) -> None:
    seconds = [START, START + DAY - 1, START + DAY, START + 3 * DAY + 1]
    frame = pl.DataFrame({"user_id": [1] * 4, "item_id": [1] * 4, "timestamp": [t * factor for t in seconds]})
    log = Interactions.from_frame(frame)
    assert log.days.tolist() == [0, 0, 1, 3]
    assert log.notes == (f"timestamp in {unit}; days are UTC days, day 0 is 2022-04-16",)


def test_float_timestamps_keep_the_order_of_fractions() -> None:
    times = [START + 0.75, START + 0.25, START + DAY + 0.5]
    log = Interactions.from_frame(pl.DataFrame({"user_id": [1] * 3, "item_id": [1, 2, 3], "timestamp": times}))
    assert log.item_ids[log.items].tolist() == [2, 1, 3]


def test_kuairand_layout(tmp_path: Path) -> None:
    # 16:30 UTC of 30 April is 1 May in China: the date decides the day, not the timestamp.
    path = write_text(
        tmp_path / "log.csv",
        "user_id,video_id,date,hourmin,time_ms,long_view,play_time_ms\n"
        "0,8,20220501,30,1651336200000,1,9000\n"
        "0,9,20220430,2300,1651330800000,1,100\n"
        "5,8,20220502,100,1651424400000,0,0\n",
    )
    log = Interactions.read(path)
    assert plays(log) == [(0, 9, 0, 1651330800000), (0, 8, 1, 1651336200000), (5, 8, 2, 1651424400000)]
    assert log.notes == ("date splits, day 0 is 2022-04-30; time_ms in milliseconds orders",)
    kept = Interactions.read(path, where="long_view = 1 and play_time_ms > 3000")
    assert plays(kept) == [(0, 8, 0, 1651336200000)]


def test_where_reads_columns_that_are_not_needed_otherwise(tmp_path: Path) -> None:
    log = Interactions.read(write(LOG, tmp_path / "log.parquet"), where="long_view = 1")
    assert log.user_ids.tolist() == [0, 7]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["b", "a", ""], ["", "a", "b"]),
        ([1.0, -2.0, 0.0], [-2, 0, 1]),
        (pl.Series([1, 2, 3], dtype=pl.UInt8), [1, 2, 3]),
        (pl.Series([2**64 - 1, 5, 6], dtype=pl.UInt64), ["18446744073709551615", "5", "6"]),
        (pl.Series(["y", "x", "y"], dtype=pl.Categorical), ["x", "y"]),
    ],
)
def test_id_types(ids: object, expected: list[object]) -> None:
    log = Interactions.from_frame(pl.DataFrame({"user_id": ids, "item_id": [1, 2, 3], "day": [1, 2, 3]}))
    assert log.user_ids.tolist() == expected


def test_ids_that_turn_to_text_late_in_a_csv(tmp_path: Path) -> None:
    log = Interactions.read(
        write_text(tmp_path / "log.csv", "user_id,item_id,day\n" + "1,2,0\n" * (SAMPLED_ROWS + 1) + "x,2,1\n")
    )
    assert log.user_ids.tolist() == ["1", "x"]


def test_quoted_commas_are_not_fields(tmp_path: Path) -> None:
    log = Interactions.read(write_text(tmp_path / "log.csv", 'user_id,item_id,day\n"a,b",1,0\nc,2,1\n'))
    assert log.user_ids.tolist() == ["a,b", "c"]


def test_exact_duplicates_are_kept_and_counted() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [3, 4, 3, 3], "day": [1, 1, 1, 1]})
    log = Interactions.from_frame(frame)
    assert len(log.users) == 4
    assert log.notes[-1] == "exact duplicate rows, kept: 1"


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30),
        st.lists(st.text(max_size=4), min_size=1, max_size=30),
    )
)
def test_ids_round_trip(ids: list[int] | list[str]) -> None:
    log = Interactions.from_frame(pl.DataFrame({"user_id": [0] * len(ids), "item_id": ids, "day": [1] * len(ids)}))
    assert log.item_ids[log.items].tolist() == ids
    assert log.item_ids.tolist() == sorted(set(ids))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.data())
def test_file_order_matters_only_where_times_tie(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    column = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    frame = pl.DataFrame(
        {
            "user_id": data.draw(column),
            "item_id": data.draw(column),
            "timestamp": [START + 1000 * row for row in range(count)],
        }
    )
    shuffled = frame[data.draw(st.permutations(range(count)))]
    assert plays(Interactions.from_frame(shuffled)) == plays(Interactions.from_frame(frame))
