"""The tutorial runs as it stands there, and every layout of docs/layouts.md is read by the command that it gives."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from command import call

from cmi_fast import functional, nn

DOCS = Path(__file__).parents[1] / "docs"
API = DOCS / "api.md"
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
LAYOUTS = (DOCS / "layouts.md").read_text(encoding="utf-8")
DAY = 86_400


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    assert len(snippets) >= 9
    for snippet in snippets:
        exec(snippet, names)
    lists = names["lists"]
    assert isinstance(lists, pl.DataFrame) and lists.columns == ["user_id", "item_id", "score", "rank"]
    assert len(lists) == 10
    commands = re.findall(r"```sh\n(.*?)```", TUTORIAL, re.DOTALL)[0].replace("\\\n", "").strip().splitlines()
    assert len(commands) == 4
    for command in commands:
        code, _, err = call(capsys, *shlex.split(command)[1:])
        assert code == 0, err
    assert pl.read_csv("lists.csv").columns == lists.columns
    exec('again = Recommender.load("run").recommend(k=3)', names)


def logs() -> dict[str, pl.DataFrame]:
    """A small log in each layout, by the name of its file in docs/layouts.md."""
    rows = 40
    base = pl.DataFrame({"row": range(rows)}).select(
        user=pl.col("row") % 4,
        item=pl.col("row") % 7,
        day=pl.col("row") // 10,
        second=pl.col("row") * DAY // 10 + 1_650_067_200,
    )
    date = pl.from_epoch(pl.col("second")).dt.strftime("%Y%m%d").cast(pl.Int64).alias("date")
    seconds = pl.col("second").alias("timestamp")
    five = pl.lit(5).alias("rating")
    return {
        "plays.csv": base.select(user_id="user", item_id="item", day="day"),
        "log_standard_4_22_to_5_08_pure.csv": base.select(
            pl.col("user").alias("user_id"),
            pl.col("item").alias("video_id"),
            date,
            time_ms=pl.col("second") * 1000,
            long_view=1,
        ),
        "small_matrix.csv": base.select(
            pl.col("user").alias("user_id"),
            pl.col("item").alias("video_id"),
            date,
            pl.when(pl.col("day") < 9).then(seconds),
            watch_ratio=1.5,
        ),
        "user_action.csv": base.select(userid="user", feedid="item", date_="day", like=1, forward=0, favorite=0),
        "ratings.csv": base.select(pl.col("user").alias("userId"), pl.col("item").alias("movieId"), five, seconds),
        "MicroLens-100k_pairs.csv": base.select("user", "item", timestamp=pl.col("second") * 1000),
        "ml-100k.inter": base.select(
            pl.col("user").alias("user_id:token"),
            pl.col("item").alias("item_id:token"),
            five.alias("rating:float"),
            seconds.alias("timestamp:float"),
        ),
        "views.tsv": base.select(
            uid="user", clip="item", seen_at=pl.from_epoch(pl.col("second")).dt.strftime("%Y-%m-%d %H:%M:%S")
        ),
    }


COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^ {4}(cmi-fast .*)$", LAYOUTS, re.MULTILINE)]


def test_every_layout_has_a_command() -> None:
    assert [command[1] for command in COMMANDS] == list(logs())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[1])
def test_layouts_are_read(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / command[1]
    logs()[command[1]].write_csv(path, separator="," if path.suffix == ".csv" else "\t")
    code, out, err = call(capsys, command[0], path, *command[2:])
    assert code == 0, err
    assert re.search(r"^ *4 +7 +40 +4 ", out, re.MULTILINE), out


def test_the_api_reference_is_that_of_the_code() -> None:
    tool = DOCS.parent / "tools" / "api_reference.py"
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, check=True)
    for name in (*functional.__all__, *nn.__all__, "Interactions.read", "Recommender.fit", "build_info"):
        assert re.search(rf"^#+ `[\w.]*\b{name}`$", done.stdout, re.MULTILINE), name
    # Signatures look a little different from one Python to the next; headings and docstrings do not.
    found, written = (
        re.sub(r"```python\n.*?```", "", text, flags=re.S) for text in (done.stdout, API.read_text(encoding="utf-8"))
    )
    assert found.strip() == written.strip(), "run: python tools/api_reference.py > docs/api.md"
