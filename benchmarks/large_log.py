"""A log of the size of TakaTak's: ``python benchmarks/large_log.py FOLDER docs/performance-large-log.md``.

Simulates 33.9 million plays into FOLDER, unless they are there, and writes the time and the peak memory of what
leads from them to recommendations.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from measure import fma_peak

SIMULATE = "simulate log.parquet --users 50000 --items 157691 --days 28 --plays-per-user 678"
STATS = "stats log.parquet"
TRAIN = "train log.parquet --out run --set epochs=1 --set steps_per_epoch=1000"
RECOMMEND = "recommend run --k 50 --out lists.parquet"
STAGES = {
    "reading": "reading, from what was kept",
    "training": "1,000 steps of 128, and Recall and the like of all users of the valid day",
    "evaluating": "the same of the test day",
    "baselines": "ItemKNN, popularity: fitted, and of both days",
}


def run(command: str, folder: Path, cache: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak gigabytes of a command."""
    started = time.perf_counter()
    program = Path(sys.executable).with_name("cmi-fast")
    process = subprocess.Popen([program, *command.split()], cwd=folder, env=os.environ | {"CMI_FAST_CACHE": cache})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has reaped it
    if process.returncode:
        raise SystemExit(f"cmi-fast {command}: exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def stages(log: Path) -> dict[str, float]:
    """Seconds of each stage of a training but the last, which its log does not see the end of."""
    begun: list[tuple[str, datetime.datetime]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        stamp, _, said = line.partition("  ")
        if said.startswith("stage: "):
            begun.append((said.removeprefix("stage: "), datetime.datetime.fromisoformat(stamp)))
    return {name: (end - moment).total_seconds() for (name, moment), (_, end) in pairwise(begun)}


def main(folder: Path, page: Path) -> None:
    if not (folder / "log.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(SIMULATE, folder, "")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        measured = [
            (f"`{STATS}`: read, encoded, kept, split, counted", *run(STATS, folder, cache)),
            ("again, from what was kept", *run(STATS, folder, cache)),
        ]
        shutil.rmtree(folder / "run", ignore_errors=True)
        measured.append((f"`{TRAIN}`", *run(TRAIN, folder, cache)))
        measured.append((f"`{RECOMMEND}`: all 50,000 users", *run(RECOMMEND, folder, cache)))
    rows = [f"| {what} | {wall:.1f} | {processor:.1f} | {peak:.2f} |" for what, wall, processor, peak in measured]
    rows[3:3] = [f"| - {STAGES[name]} | {wall:.0f} | | |" for name, wall in stages(folder / "run/log.txt").items()]
    lines = [
        "# A log of TakaTak's size",
        "",
        f"Written by `python benchmarks/large_log.py FOLDER {page}` on {datetime.date.today()},",
        f"{os.cpu_count()} processors, FMA peak {fma_peak():.0f} GFLOP/s. The log is that of",
        f"`cmi-fast {SIMULATE}`.",
        "",
        "| `cmi-fast` | seconds | processor seconds | peak memory, GB |",
        "|---|---|---|---|",
        *rows,
        "",
        "Peak memory counts mapped pages of the kept arrays that were touched, which the system can take back.",
    ]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
