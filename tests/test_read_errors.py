"""Bad logs: one clear line for each, and none of polars' own errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from logs import LOG, START, write, write_text

from cmi_fast.data import Interactions
from cmi_fast.errors import InputError

GOOD_ROWS = "1,2,0\n1,3,1\n2,2,2\n"


def refusal(log: Path | pl.DataFrame, **options: str) -> str:
    """The message with which reading ``log`` fails."""
    read = Interactions.read if isinstance(log, Path) else Interactions.from_frame
    with pytest.raises(InputError) as caught:
        read(log, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv").endswith("none.csv: no such file")
    assert "is a directory" in refusal(tmp_path)
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "unknown kind of file" in refusal(write_text(tmp_path / "log.docx", "a"))
    assert "no rows" in refusal(write_text(tmp_path / "log.csv", "user_id,item_id,day\n"))
    assert "no rows" in refusal(write_text(tmp_path / "log.csv", "user_id,item_id,day\n"), where="day = 1")


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_empty_and_binary_files(tmp_path: Path, name: str) -> None:
    assert "the file is empty" in refusal(write_text(tmp_path / name, b""))
    noise = np.random.default_rng(0).bytes(3000)
    assert f"{name}: " in refusal(write_text(tmp_path / name, noise))
    assert f"{name}: " in refusal(write_text(tmp_path / name, bytes(500)))


@pytest.mark.parametrize("name", ["log.parquet", "log.csv.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, name: str, kept: float) -> None:
    path = write(LOG, tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert f"{name}: cannot be read" in refusal(path)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("1,2,3,4", "line 5: found 4 fields, expected 3"),
        ("1,2", "line 5: found 2 fields, expected 3"),
        ('1,"2,3', "cannot be read"),
        ("\n1,2,3", "line 5, column user_id: found null"),
    ],
)
def test_malformed_csv(tmp_path: Path, row: str, found: str) -> None:
    assert found in refusal(write_text(tmp_path / "log.csv", f"user_id,item_id,day\n{GOOD_ROWS}{row}\n"))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("7,x,soon", "line 250002, column timestamp: found 'soon'"),
        ("7,x", "line 250002: found 2 fields, expected 3"),
        (f",x,{START}", "line 250002, column user_id: found null"),
    ],
)
def test_one_bad_row_in_the_middle_of_a_large_file(tmp_path: Path, row: str, found: str) -> None:
    rows = [f"{i % 5000},x{i % 777},{START + i}" for i in range(300_000)]
    rows[250_000] = row
    path = write_text(tmp_path / "log.csv", "\n".join(["user_id,item_id,timestamp", *rows]))
    assert found in refusal(path)


def test_extra_fields_are_seen_though_their_columns_are_not_read(tmp_path: Path) -> None:
    path = write_text(tmp_path / "log.csv", "user_id,item_id,day,a,b\n1,2,3,4,5\n1,2,3,4,5,6\n")
    assert "line 3: found 6 fields, expected 5" in refusal(path)


@pytest.mark.parametrize("columns", ["user_id,item_id,date", "user_id,day", "item_id,timestamp", "a;b"])
def test_missing_columns(tmp_path: Path, columns: str) -> None:
    message = refusal(write_text(tmp_path / "log.csv", f"{columns}\n{columns}\n"))
    assert all(name in message for name in columns.split(","))
    assert "expected user_id, item_id and day, timestamp or datetime; or KuaiRand's" in message


@pytest.mark.parametrize("value", ["abc", "-1650000000", "0", "5", "1e18", "", "nan", "inf", "2022-04-25"])
def test_timestamps_that_are_no_times(tmp_path: Path, value: str) -> None:
    path = write_text(tmp_path / "log.csv", f"user_id,item_id,timestamp\n1,2,{START}\n1,2,{value}\n1,2,{value}\n")
    message = refusal(path)
    assert "line 3, column timestamp: found" in message
    assert message.endswith("expected seconds or milliseconds since 1970 (first of 2 bad rows)")


def test_timestamps_of_two_units() -> None:
    times = [START, START * 1000]
    message = refusal(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 1], "timestamp": times}))
    assert "row 1, column timestamp" in message
    assert "expected seconds as in the first row" in message


@pytest.mark.parametrize("value", ["abc", "1.5", "", "nan", "1e18"])
def test_days_that_are_not_whole_numbers(tmp_path: Path, value: str) -> None:
    message = refusal(write_text(tmp_path / "log.csv", f"user_id,item_id,day\n{GOOD_ROWS}1,2,{value}\n"))
    assert "line 5, column day: found" in message
    assert "expected a whole number" in message


def test_whole_days_may_be_floats_and_negative() -> None:
    log = Interactions.from_frame(pl.DataFrame({"user_id": [1, 1], "item_id": [1, 1], "day": [-1.0, 3.0]}))
    assert log.days.tolist() == [-1, 3]


def test_dates_that_do_not_exist(tmp_path: Path) -> None:
    path = write_text(
        tmp_path / "log.csv",
        "user_id,video_id,date,time_ms\n1,2,20220430,1651250000000\n1,2,20220231,1651250000000\n",
    )
    assert "line 3, column date: found 20220231" in refusal(path)


@pytest.mark.parametrize("column", ["user_id", "item_id"])
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_null_ids(tmp_path: Path, column: str, name: str) -> None:
    nulls = pl.when(pl.int_range(pl.len()) >= 4).then(None).otherwise(pl.col(column)).alias(column)
    path = write(LOG.with_columns(nulls), tmp_path / name)
    where = "line 6" if name == "log.csv" else "row 4"
    expected = f"{where}, column {column}: found null, expected an id (first of 2 bad rows)"
    assert expected in refusal(path)


@pytest.mark.parametrize("ids", [[True, False], [1.5, 2.0], [[1], [2]], [b"a", b"b"], [float("nan"), 1.0]])
def test_ids_of_other_types(ids: list[object]) -> None:
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": ids, "day": [1, 2]})
    assert "column item_id: found" in refusal(frame)


@pytest.mark.parametrize("column", ["day", "timestamp"])
def test_times_of_other_types(column: str) -> None:
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], column: ["1650000000", "1650000001"]})
    assert f"column {column}: found type String" in refusal(frame)


def test_bad_rows_are_counted_in_the_file_but_only_kept_ones_matter() -> None:
    frame = LOG.with_columns(item_id=pl.Series([None, None, 40, 50, None, 50]))
    message = refusal(frame, where="day >= 4")
    assert "row 4, column item_id: found null, expected an id (1 bad row)" in message
    assert len(Interactions.from_frame(frame, where="item_id is not null").users) == 3


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("day = 99", "filter 'day = 99' keeps no rows"),
        ("nope = 1", "no column nope; columns of frame: user_id, item_id, timestamp, day, long_view"),
        ("day =", "filter 'day ='"),
        ("", "filter ''"),
        ("day", "Boolean"),
        ("day = 'x'", "filter"),
        ("SELECT day", "filter 'SELECT day'"),
        ("day = 1\nor", "filter"),
    ],
)
def test_bad_filters(where: str, found: str) -> None:
    assert found in refusal(LOG, where=where)


def test_errors_of_a_frame_name_its_source() -> None:
    assert refusal(LOG.drop("item_id"), source="plays").startswith("plays: ")
