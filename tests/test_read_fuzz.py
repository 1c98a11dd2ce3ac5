"""Readers given anything: a log, or one InputError of one line; never another error."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cmi_fast import Interactions
from cmi_fast.errors import InputError

HEADERS = (
    "user_id,item_id,timestamp",
    "user_id,item_id,day",
    "user_id,item_id,datetime,weight",
    "user_id,video_id,date,time_ms",
    "user_id,video_id,date,timestamp",
    "userid,feedid,date_,like",
    "user,item,timestamp",
    "userId,movieId,rating,timestamp",
    "user_id:token,item_id:token,timestamp:float",
    "uid,vid,when",
    "user_id,user_id,day",
    "",
)
TOKENS = st.one_of(
    st.integers(-5, 5).map(str),
    st.integers(1_650_000_000, 1_650_500_000).map(str),
    st.integers(1_650_000_000_000, 1_650_500_000_000).map(str),
    st.integers(20220425, 20220435).map(str),
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-1e309",
            "1e18",
            "null",
            "true",
            '"',
            '"a,b"',
            "2022-04-25",
            "2022-04-25 10:00:00",
            "é",
            "\x00",
            "2022-04-25T10:00:00Z",
            str(2**63),
            str(-(2**63)),
            str(2**64),
            "\t",
            " ",
            "\r",
            "0x1",
            "1_0",
            "\uff11",
        ]
    ),
    st.text(max_size=5),
)
LINES = st.lists(st.lists(TOKENS, min_size=1, max_size=5), max_size=6)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "where": st.one_of(
            st.sampled_from(["day > 0", "timestamp is not null", "1", "user_id = 'x'"]), st.text(max_size=8)
        ),
        "positive": st.lists(st.sampled_from(["like", "day", "weight", "nope"]), max_size=2),
        "columns": st.dictionaries(
            st.sampled_from(["user_id", "item_id", "timestamp", "datetime", "date", "day", "x"]),
            st.sampled_from(["user_id", "uid", "vid", "when", "item_id", "day"]),
            max_size=3,
        ),
        "time_zone": st.sampled_from(["UTC", "Asia/Shanghai", "nowhere"]),
    },
)


@st.composite
def text_logs(draw: st.DrawFn) -> tuple[str, bytes]:
    """A text file that is nearly a log: right or wrong header, rows of values that occur or are near them."""
    kind = draw(st.sampled_from(["csv", "tsv", "inter", "dat", "data", "CSV", "csv.gz", "tsv.gz"]))
    separator = {"csv": ",", "dat": "::"}.get(kind.lower().removesuffix(".gz"), "\t")
    rows = [draw(st.sampled_from(HEADERS)).replace(",", separator)] if draw(st.booleans()) or kind[0] != "d" else []
    rows += [separator.join(row) for row in draw(LINES)]
    content = "\n".join(rows).encode(errors="replace")
    return kind, gzip.compress(content) if kind.endswith("gz") else content


def valid_files() -> dict[str, bytes]:
    frame = pl.DataFrame(
        {"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "day": [1, 2, 3], "timestamp": [1_650_000_000] * 3}
    )
    parquet, npz = io.BytesIO(), io.BytesIO()
    frame.write_parquet(parquet)
    scipy.sparse.save_npz(npz, scipy.sparse.csr_matrix(np.eye(3)))
    csv = frame.write_csv().encode()
    return {"parquet": parquet.getvalue(), "npz": npz.getvalue(), "csv": csv, "csv.gz": gzip.compress(csv)}


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good file of which some bytes are others, or which ends early, or whose name says another kind."""
    kind, content = draw(st.sampled_from(sorted(valid_files().items())))
    damaged = bytearray(content)
    for _ in range(draw(st.integers(0, 8))):
        damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    return draw(st.sampled_from([kind, kind, kind, "parquet", "npz", "csv", "inter", "parquet.gz"])), bytes(
        damaged[:end]
    )


FILES = st.one_of(
    text_logs(), damaged_files(), st.tuples(st.sampled_from(["csv", "parquet", "npz", "dat"]), st.binary(max_size=200))
)


def check(folder: Path, kind: str, content: bytes, options: dict[str, object]) -> None:
    path = folder / f"log.{kind}"
    path.write_bytes(content)
    try:
        log = Interactions.read(path, **options)
    except InputError as error:
        message = str(error)
        assert message and "\n" not in message
    else:
        assert len(log.users) == len(log.items) == len(log.days) == len(log.times) > 0
        assert log.users.max() == log.num_users - 1 and log.items.max() == log.num_items - 1


FUZZ = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


@settings(max_examples=1_000, derandomize=True, **FUZZ)
@given(FILES, OPTIONS)
def test_a_thousand_files(tmp_path: Path, file: tuple[str, bytes], options: dict[str, object]) -> None:
    check(tmp_path, *file, options)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_a_hundred_thousand_files(tmp_path: Path, number: int) -> None:
    @seed(number)
    @settings(max_examples=10_000, **FUZZ)
    @given(FILES, OPTIONS)
    def ten_thousand(file: tuple[str, bytes], options: dict[str, object]) -> None:
        check(tmp_path, *file, options)

    ten_thousand()
