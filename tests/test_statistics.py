"""Statistics of a log: by hand on a small one, and known figures of the real ones."""

from __future__ import annotations

import polars as pl
import pytest
from real_logs import DATED_CSV, PARQUET, needs_real_logs

from cmi_fast.data import Interactions, statistics
from cmi_fast.data.statistics import PartStatistics, TargetStatistics
from cmi_fast.errors import InputError

LOG = pl.DataFrame(
    [
        *[(1, 10, 0), (1, 11, 0), (1, 10, 1), (2, 12, 1)],
        *[(1, 11, 2), (3, 13, 2)],
        *[(1, 11, 3), (1, 14, 3), (1, 14, 3), (2, 13, 3), (4, 10, 3)],
    ],
    schema=["user_id", "item_id", "day"],
    orient="row",
)


def test_statistics_by_hand() -> None:
    found = statistics(Interactions.from_frame(LOG))
    assert (found.users, found.items, found.interactions, found.days) == (4, 5, 11, 4)
    assert found.density == pytest.approx(11 / 20)
    assert (found.plays_median, found.plays_max) == (1.5, 7)
    assert found.parts == (
        PartStatistics("train", 0, 1, users=2, items=3, plays=4),
        # 13 is cold; user 1 played 11 before; user 3 has no history.
        PartStatistics("valid", 2, 2, 2, 2, 2, TargetStatistics(2, 0.5, 0.5, users_without_history=1)),
        # Targets 11 and 14 of user 1, 13 of user 2, 10 of user 4: 13 and 14 cold (the valid day does not
        # train), 11 a repeat, user 4 without history.
        PartStatistics("test", 3, 3, 3, 4, 5, TargetStatistics(4, 0.5, 0.25, users_without_history=1)),
    )


def test_tables_are_plain_and_whole() -> None:
    assert str(statistics(Interactions.from_frame(LOG))) == (
        "users  items  interactions  days   density  plays a user: median  max\n"
        "4          5            11     4  55.0000%                   1.5    7\n"
        "\n"
        "part   days  users  items  plays  targets    cold  repeats  no history\n"
        "train  0..1      2      3      4        -       -        -           -\n"
        "valid     2      2      2      2        2  50.00%   50.00%           1\n"
        "test      3      3      4      5        4  50.00%   25.00%           1"
    )


def test_a_log_that_cannot_be_split_has_no_statistics() -> None:
    log = Interactions.from_frame(LOG.filter(pl.col("day") < 2))
    with pytest.raises(InputError, match="needs 3"):
        statistics(log)


@needs_real_logs
def test_real_parquet() -> None:
    found = statistics(Interactions.read(PARQUET))
    assert (found.users, found.items, found.interactions, found.days) == (18_354, 6_595, 322_434, 15)
    test = found.parts[-1]
    assert (test.first_day, test.users, test.plays) == (14, 2638, 3490)


@needs_real_logs
def test_real_csv_agrees_with_the_parquet_on_long_views() -> None:
    everything = statistics(Interactions.read(DATED_CSV))
    assert (everything.interactions, everything.days) == (159_487, 14)
    long_views = statistics(Interactions.read(DATED_CSV, where="long_view = 1"))
    assert (long_views.parts[-1].users, long_views.parts[-1].plays) == (2638, 3490)
