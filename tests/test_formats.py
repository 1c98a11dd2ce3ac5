"""Every kind of file, frame and layout gives the same plays."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from logs import LOG, START, write_text

from cmi_fast import Interactions
from cmi_fast.errors import InputError

PLAYS = LOG.select("user_id", "item_id", "timestamp")
HOUR = 3600


def plays(log: Interactions) -> list[tuple[object, object, int]]:
    users, items = log.user_ids[log.users], log.item_ids[log.items]
    return list(zip(users.tolist(), items.tolist(), log.days.tolist(), strict=True))


EXPECTED = plays(Interactions.from_frame(PLAYS))


def as_text(separator: str, header: str | None = None) -> str:
    body = PLAYS.write_csv(separator=separator[0], include_header=header is None)
    return body if header is None else f"{header}\n{body}"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "inter"])
def test_kinds_of_files(tmp_path: Path, kind: str, zipped: bool) -> None:
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        PLAYS.write_parquet(path)
    else:
        header = "user_id:token\titem_id:token\ttimestamp:float" if kind == "inter" else None
        write_text(path, as_text("," if kind == "csv" else "\t", header))
    if zipped:
        path = write_text(tmp_path / f"log.{kind}.gz", gzip.compress(path.read_bytes()))
    assert plays(Interactions.read(path)) == EXPECTED


@pytest.mark.parametrize(("name", "separator"), [("ratings.dat", "::"), ("u.data", "\t")])
def test_movielens_without_header(tmp_path: Path, name: str, separator: str) -> None:
    lines = (separator.join(map(str, (user, item, 5, time))) for user, item, time in PLAYS.rows())
    path = write_text(tmp_path / name, "".join(f"{line}\n" for line in lines))
    assert plays(Interactions.read(path)) == EXPECTED
    path.write_text(f"1{separator}2{separator}3{separator}{START}\n1{separator}2\n")
    with pytest.raises(InputError, match="line 2: found 2 fields, expected 4: userId, movieId, rating, timestamp"):
        Interactions.read(path)
    path.write_text(separator.join(["1", "2", "3", "soon"]) + "\n")
    with pytest.raises(InputError, match="line 1, column timestamp"):
        Interactions.read(path)


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        (("userId", "movieId", "timestamp"), None),
        (("user", "item", "timestamp"), None),
        (("uid", "vid", "t"), {"user_id": "uid", "item_id": "vid", "timestamp": "t"}),
        (("uid", "item_id", "timestamp"), {"user_id": "uid"}),
    ],
)
def test_layouts_with_timestamps(columns: tuple[str, ...], kept: dict[str, str] | None) -> None:
    assert (
        plays(Interactions.from_frame(PLAYS.rename(dict(zip(PLAYS.columns, columns, strict=True))), columns=kept))
        == EXPECTED
    )


def test_kuairec() -> None:
    text = "2022-04-16 00:30:00.0"  # half past midnight in China is another day in UTC
    frame = pl.DataFrame(
        {
            "user_id": [1, 1, 2],
            "video_id": [5, 6, 5],
            "play_duration": [9, 9, 9],
            "video_duration": [9, 9, 9],
            "time": [text] * 3,
            "date": [20220417.0, 20220416.0, 20220418.0],
            "timestamp": [START + 2.5, START + 1.5, START],
            "watch_ratio": [0.5, 3.0, 1.0],
        }
    )
    log = Interactions.from_frame(frame)
    assert plays(log) == [(1, 6, 0), (1, 5, 1), (2, 5, 2)]
    assert log.notes == ("date splits, day 0 is 2022-04-16; timestamp in seconds orders",)
    assert plays(Interactions.from_frame(frame, where="watch_ratio >= 2")) == [(1, 6, 0)]
    nulls = frame.with_columns(timestamp=pl.Series([START, None, START]))
    with pytest.raises(InputError, match="row 1, column timestamp: found null"):
        Interactions.from_frame(nulls)


def test_wechat_and_positive_actions() -> None:
    frame = pl.DataFrame(
        {
            "userid": [1, 1, 2, 2],
            "feedid": [5, 6, 5, 7],
            "date_": [1, 2, 1, 3],
            "like": [0, 1, 0, 0],
            "forward": [1, 0, 0, 0],
        }
    )
    everything = Interactions.from_frame(frame)
    assert plays(everything) == [(1, 5, 1), (1, 6, 2), (2, 5, 1), (2, 7, 3)]
    assert everything.notes[1].startswith("every row counts as a play; --positive")
    kept = Interactions.from_frame(frame, positive=["like", "forward"])
    assert plays(kept) == [(1, 5, 1), (1, 6, 2)]
    assert kept.notes[1] == "a play is a row with like or forward above 0"
    assert plays(Interactions.from_frame(frame, positive=["like"], where="date_ > 1")) == [(1, 6, 2)]
    for positive, message in ((["share"], "--positive share: no such column; frame has userid"), (["name"], "numbers")):
        with pytest.raises(InputError, match=message):
            Interactions.from_frame(frame.with_columns(name=pl.lit("x")), positive=positive)
    with pytest.raises(InputError, match="the filter 'date_ = 3' and --positive like keeps no rows"):
        Interactions.from_frame(frame, positive=["like"], where="date_ = 3")
    with pytest.raises(TypeError, match="positive must be a list"):
        Interactions.from_frame(frame, positive="like")


def test_recbole_names_that_repeat() -> None:
    with pytest.raises(InputError, match="repeat without their types"):
        Interactions.from_frame(pl.DataFrame({"user_id:token": [1], "user_id:float": [2]}))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
def test_every_way_to_write_a_time_gives_the_same_days(tmp_path: Path, zone: str) -> None:
    """Instants as seconds, milliseconds, text with an offset, and zoned datetimes; and the same as local times."""
    seconds = [START + HOUR * hours for hours in (0, 3, 9, 15, 17, 23, 30, 60)]
    instant = pl.Series(seconds).cast(pl.Int64) * 1000
    zoned = instant.cast(pl.Datetime("ms", "UTC"))
    local = zoned.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    days = local.dt.date().cast(pl.Int32)
    expected = (days - days.min()).to_list()
    variants = {
        "timestamp": [pl.Series(seconds), pl.Series(seconds) + 0.25, instant],
        "datetime": [
            zoned,
            zoned.dt.convert_time_zone("Asia/Tokyo"),
            zoned.cast(pl.Datetime("ns", "UTC")),
            local,
            pl.Series(seconds),
            zoned.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            zoned.dt.convert_time_zone("Asia/Kolkata").dt.strftime("%Y-%m-%dT%H:%M:%S%:z"),
            local.dt.strftime("%Y-%m-%d %H:%M:%S"),
            local.dt.strftime("%Y-%m-%dT%H:%M:%S.250"),
            local.dt.strftime("%Y-%m-%d %H:%M"),
        ],
    }
    for column, series in variants.items():
        for values in series:
            frame = pl.DataFrame({"user_id": [1] * 8, "item_id": range(8), column: values}).reverse()
            log = Interactions.from_frame(frame, time_zone=zone)
            assert log.days.tolist() == expected, (column, values)
            assert log.items.tolist() == list(range(8)), (column, values)
            if values.dtype == pl.String:
                frame.write_csv(tmp_path / "log.csv")
                assert Interactions.read(tmp_path / "log.csv", time_zone=zone).days.tolist() == expected


def test_dates_without_time() -> None:
    for values in (["2024-02-28", "2024-03-01"], pl.Series(["2024-02-28", "2024-03-01"]).str.to_date()):
        frame = pl.DataFrame({"user_id": [1, 1], "item_id": [5, 6], "datetime": values})
        assert Interactions.from_frame(frame).days.tolist() == [0, 2]
    dated = pl.DataFrame(
        {"user_id": [1, 1], "item_id": [5, 6], "when": pl.Series(["2024-02-28", "2024-03-01"]).str.to_date()}
    )
    assert Interactions.from_frame(dated, columns={"date": "when"}).days.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2024-02-28 10:00:00", "28.2.2024"], "row 1, column datetime: found '28.2.2024', expected a date and time"),
        (["2024-02-28 10:00:00", "2024-02-30 10:00:00"], "written as in the first row"),
        (["soon", "later"], "row 0, column datetime: found 'soon'"),
        (["0001-01-01", "2024-02-28"], "row 0, column datetime"),
        (["9999-12-31", "2024-02-28"], "row 0, column datetime"),
        ([None, "2024-02-28"], "row 0, column datetime: found null"),
        ([True, False], "found type Boolean, expected datetimes"),
        ([[1], [2]], "found type List"),
    ],
)
def test_datetimes_that_are_none(values: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Interactions.from_frame(pl.DataFrame({"user_id": [1, 1], "item_id": [5, 6], "datetime": values}))


@pytest.mark.parametrize("zone", ["Mars/Base", "", "+08:00:00x"])
def test_unknown_time_zones(zone: str) -> None:
    with pytest.raises(InputError, match=r"--time-zone .*: unknown, expected a name such as"):
        Interactions.from_frame(PLAYS, time_zone=zone)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "user_id"}, "unknown role 'user', expected user_id, item_id, day"),
        ({"user_id": "uid"}, "--columns user_id=uid: no column uid; frame has user_id, item_id"),
        ({"timestamp": "day"}, "row 0, column day: found 3, expected seconds"),
    ],
)
def test_bad_columns_by_name(columns: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Interactions.from_frame(LOG.drop("timestamp"), columns=columns)


def test_columns_by_name_that_are_not_enough() -> None:
    frame = pl.DataFrame({"u": [1], "i": [2], "t": [START]})
    for columns, message in (
        ({"user_id": "u"}, "no column item_id, found u, i, t; add --columns item_id=NAME"),
        ({"user_id": "u", "item_id": "i"}, "no column of times, found u, i, t; add --columns timestamp=NAME"),
    ):
        with pytest.raises(InputError, match=message):
            Interactions.from_frame(frame, columns=columns)


def test_frames_of_other_libraries() -> None:
    pandas = pytest.importorskip("pandas")
    for frame in (pandas.DataFrame(PLAYS.to_dict(as_series=False)), pa.table(PLAYS), PLAYS.lazy()):
        assert plays(Interactions.from_frame(frame)) == EXPECTED
    when = pandas.DataFrame(
        {"user_id": ["a", "b"], "item_id": [1, 2], "datetime": pandas.to_datetime(["2024-01-01", "2024-01-03"])}
    )
    assert Interactions.from_frame(when).days.tolist() == [0, 2]
    with pytest.raises(TypeError, match="frame must be a frame of polars, pandas or pyarrow"):
        Interactions.from_frame([1, 2])


def test_sparse_matrices(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_matrix((np.array([1.0, 0.0, 2.0, 1.0]), np.array([3, 1, 0, 2]), np.array([0, 2, 2, 4])))
    expected = [(0, 3, 0), (2, 0, 0), (2, 2, 0)]
    assert plays(Interactions.from_frame(matrix)) == plays(Interactions.from_frame(matrix.tocoo())) == expected
    scipy.sparse.save_npz(tmp_path / "log.npz", matrix)
    assert plays(Interactions.read(tmp_path / "log.npz")) == expected
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    np.savez(tmp_path / "pickled.npz", a=np.array([object()]))
    for name in ("other.npz", "pickled.npz"):
        with pytest.raises(InputError, match=f"{name}: no sparse matrix"):
            Interactions.read(tmp_path / name)


def test_names_of_files_that_are_not_utf8(tmp_path: Path) -> None:
    for name, write in ((b"\xff.csv", PLAYS.write_csv), (b"\xff.parquet", PLAYS.write_parquet)):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        with path.open("wb") as file:
            write(file)
        assert plays(Interactions.read(path)) == EXPECTED
        missing = path.with_name(os.fsdecode(b"\xfe.csv"))
        with pytest.raises(InputError, match="no such file"):
            Interactions.read(missing)
        path.write_bytes(b"user_id,item_id,day\n1,2\n")
        with pytest.raises(InputError):
            Interactions.read(path)


def test_a_wrong_type_in_the_middle_of_a_large_file_is_named(tmp_path: Path) -> None:
    rows = [f"{row % 99},{row % 77},{START + row}" for row in range(200_000)]
    rows[123_456] = "3,4,soon"
    path = write_text(tmp_path / "log.csv", "\n".join(["user_id,item_id,timestamp", *rows]))
    with pytest.raises(InputError, match="line 123458, column timestamp: found 'soon', expected seconds"):
        Interactions.read(path)
