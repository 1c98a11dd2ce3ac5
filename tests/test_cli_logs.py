"""The command line on logs of every kind, and what can go wrong with files: one line, exit code 2, nothing left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from command import SMALL, call

from cmi_fast.data.simulate import simulate
from cmi_fast.training.config import load_config


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Plays whose columns have other names, with text ids and local times, and an action a third of them has."""
    frame, _ = simulate(users=90, items=150, days=6, plays_per_user=30)
    return frame.select(
        uid="u" + pl.col("user_id").cast(pl.String),
        vid="v" + pl.col("item_id").cast(pl.String),
        at=pl.from_epoch("timestamp", "ms").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        like=(pl.int_range(pl.len()) % 3 > 0).cast(pl.Int8),
    )


READING = ["--columns", "user_id=uid,item_id=vid,datetime=at", "--positive", "like", "--time-zone", "Asia/Shanghai"]


@pytest.fixture(scope="module")
def trained(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    log.write_csv(folder / "log.tsv", separator="\t")
    code = "from cmi_fast.cli import main; main()"
    arguments = ["train", str(folder / "log.tsv"), "--out", str(folder / "run"), *READING, "--split", "last", *SMALL]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "note: a play is a row with like above 0" in done.stdout
    assert "days are days of Asia/Shanghai" in done.stdout
    return folder / "run"


def test_how_the_log_is_read_is_recorded_and_repeated(
    trained: Path, log: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = load_config(trained / "config.toml").data
    assert source is not None
    assert (source.positive, source.time_zone, source.split) == (["like"], "Asia/Shanghai", "last")
    assert source.columns == {"user_id": "uid", "item_id": "vid", "datetime": "at"}
    code, printed, err = call(capsys, "evaluate", trained, "--json")
    assert code == 0, err
    assert '"mrr@50"' in printed
    log.head(2000).write_csv(tmp_path / "later.csv")
    code, _, err = call(capsys, "recommend", trained, "--data", tmp_path / "later.csv", "--out", tmp_path / "o.csv")
    assert code == 0, err
    code, printed, err = call(capsys, "stats", tmp_path / "later.csv", *READING, "--split", "ratio")
    assert code == 0 and "valid" in printed, err


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_recommend_for_some_users(trained: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = pl.DataFrame({"user_id": ["u7", "u3", "u7"]})
    path = tmp_path / f"users.{kind}"
    if kind == "txt":
        path.write_text("u7\n\nu3 \nu7\n")
    else:
        wanted.write_csv(path) if kind == "csv" else wanted.write_parquet(path)
    code, _, err = call(capsys, "recommend", trained, "--users", path, "--k", 4, "--out", tmp_path / "o.csv")
    assert code == 0, err
    assert pl.read_csv(tmp_path / "o.csv")["user_id"].to_list() == ["u7"] * 4 + ["u3"] * 4


def test_users_that_are_not_in_the_log(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users, out = tmp_path / "users.txt", tmp_path / "o.parquet"
    users.write_text("u7\nnobody\nnoone\n")
    code, _, err = call(capsys, "recommend", trained, "--users", users, "--out", out)
    assert code == 2 and "2 are not in the log, such as 'nobody'; --skip-unknown" in err and err.count("\n") == 1
    assert not out.exists()
    code, printed, _ = call(capsys, "recommend", trained, "--users", users, "--out", out, "--skip-unknown")
    assert code == 0 and "note: 2 of the users are not in the log" in printed
    assert set(pl.read_parquet(out)["user_id"]) == {"u7"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.csv", b"name\nu7\n", "no column user_id, found name"),
        ("users.txt", b"\xff\xfe", "cannot be read"),
        ("users.parquet", b"PAR1", "cannot be read"),
        ("users.json", b"[]", "unknown kind of file, expected .txt, .csv or .parquet"),
        ("users.csv", None, "cannot be read"),
    ],
)
def test_bad_files_of_users(
    trained: Path, tmp_path: Path, name: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = call(capsys, "recommend", trained, "--users", tmp_path / name, "--out", tmp_path / "o.csv")
    assert code == 2 and name in err and message in err and err.count("\n") == 1
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend"], "Missing argument"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["stats", "x.csv", "--nope"], "No such option: --nope"),
        (["simulate", "x.parquet", "--users", "many"], "--users"),
        (
            ["simulate", "x.parquet", "--users", str(10**15)],
            "users: found 1000000000000000, expected at most 1000000000",
        ),
        (["simulate", "x.parquet", "--users", str(10**9)], "GB to draw, found"),
        (["simulate", "x.parquet", "--items", str(10**30)], "items"),
        (["simulate", "x.parquet", "--days", str(10**9)], "days: found 1000000000, expected at most 36500"),
        (["simulate", "x.parquet", "--plays-per-user", "nan"], "plays_per_user: found nan"),
        (["stats", "x.csv", "--columns", "user_id"], "--columns user_id: expected role=column"),
        (["stats", "x.csv", "--time-zone", "Mars"], "--time-zone Mars: unknown"),
        (["stats", "x\ny.csv"], "x y.csv: no such file"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("cmi-fast: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    assert code == 0 and "simulate" in out and err == ""


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1] * 12, "item_id": [5] * 12}, ""),
        ({"user_id": [1] * 12, "item_id": [*range(12)]}, ""),
        ({"user_id": [*range(12)], "item_id": [5] * 12}, ""),
        ({"user_id": [*range(12)], "item_id": [*range(12)]}, ""),
    ],
)
def test_one_user_or_one_item(
    columns: dict[str, list[int]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either a model, or one line that says what is missing: never a traceback or a hang."""
    pl.DataFrame(columns | {"day": [0, 1, 2] * 4}).write_csv(tmp_path / "log.csv")
    code, out, err = call(capsys, "train", tmp_path / "log.csv", "--out", tmp_path / "run", *SMALL)
    assert code in (0, 2) and "Traceback" not in out + err
    assert (code == 0) == (tmp_path / "run" / "metrics.json").exists()
    if code == 2:
        assert err.startswith("cmi-fast: ") and err.count("\n") == 1


def test_names_that_are_not_utf8(log: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    with (folder / "log.csv").open("wb") as file:
        log.write_csv(file)
    for command in (
        ["train", folder / "log.csv", "--out", folder / "run", *READING, *SMALL],
        ["evaluate", folder / "run"],
        ["recommend", folder / "run", "--out", folder / "lists.parquet"],
        ["recommend", folder / "run", "--out", folder / "lists.csv"],
        ["simulate", folder / "x.parquet", "--users", 20, "--items", 20],
    ):
        code, _, err = call(capsys, *(os.fsdecode(os.fsencode(str(argument))) for argument in command))
        assert code == 0, err
    names = {path.name for path in folder.iterdir()}
    assert names == {"log.csv", "run", "lists.parquet", "lists.csv", "x.parquet", "x.truth.parquet"}


@pytest.mark.parametrize("out", ["/proc/nothing.csv", "/sys/nothing.parquet", "/dev/null/x.csv"])
def test_places_that_cannot_be_written(trained: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "recommend", trained, "--out", out)
    assert code == 2 and out in err and err.count("\n") == 1


def limited() -> None:
    """No file may grow beyond 20 kB: writing fails in the middle, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("command", ["simulate", "recommend", "train"])
def test_a_write_that_fails_in_the_middle(trained: Path, tmp_path: Path, command: str) -> None:
    log, out = trained.parent / "log.tsv", tmp_path / ("run" if command == "train" else "out.parquet")
    arguments = {
        "simulate": ["simulate", out],
        "recommend": ["recommend", trained, "--k", 100, "--out", out],
        "train": ["train", log, "--out", out, *READING, *SMALL, "--set", "dim=256"],
    }[command]
    code = "from cmi_fast.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("cmi-fast: ") and "cannot be written" in done.stderr and done.stderr.count("\n") == 1
    if command == "train":  # the weights come last: without them there is no model
        assert not (out / "model.safetensors").exists() and not list(out.glob(".*"))
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    target.write_text("old")
    code = f"""
import time
from cmi_fast.data.files import atomic_path
with atomic_path({str(target)!r}) as path:
    path.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.kill()
    time.sleep(0.1)
    assert target.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB, where mounting one is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no permission to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(trained: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["simulate", small_disk / "x.parquet", "--users", 2000],
        ["recommend", trained, "--k", 100, "--out", small_disk / "lists.parquet"],
        ["recommend", trained, "--k", 100, "--out", small_disk / "lists.csv"],
    ):
        code, _, err = call(capsys, *arguments)
        assert code == 2 and "No space left on device" in err and err.count("\n") == 1, err
        assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "depth = 3\n", "unknown key 'depth'"),
        ("config.toml", "dim = [\n", "no valid TOML"),
        ("config.toml", None, "cannot be read"),
        ("model.safetensors", "{}", "no complete trained model"),
        ("items.parquet", None, "cannot be read"),
    ],
)
def test_a_run_of_another_version_or_without_a_file(
    trained: Path, tmp_path: Path, name: str, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    for command in (["evaluate", copy], ["recommend", copy, "--out", tmp_path / "o.csv"]):
        code, _, err = call(capsys, *command)
        assert code == 2 and name in err and message in err and err.count("\n") == 1
    assert not (tmp_path / "o.csv").exists()
