"""A log of the size of TakaTak's: ``python benchmarks/large_log.py FOLDER docs/performance-large-log.md``.

Simulates 33.9 million plays into FOLDER, unless they are there, and writes the time and the peak memory of reading
them.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import fma_peak

SIMULATE = "simulate log.parquet --users 50000 --items 157691 --days 28 --plays-per-user 678"
STATS = "stats log.parquet"


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


def main(folder: Path, page: Path) -> None:
    if not (folder / "log.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(SIMULATE, folder, "")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = [
            (note, *run(STATS, folder, cache))
            for note in ("read, encoded, kept, split, counted", "again, from what was kept")
        ]
    threads = os.cpu_count()
    lines = [
        "# A log of TakaTak's size",
        "",
        f"Written by `python benchmarks/large_log.py FOLDER {page}` on {datetime.date.today()},",
        f"{threads} processors, FMA peak {fma_peak():.0f} GFLOP/s. The log is that of",
        f"`cmi-fast {SIMULATE}`.",
        "",
        f"| `cmi-fast {STATS}` | seconds | processor seconds | peak memory, GB |",
        "|---|---|---|---|",
        *(f"| {note} | {wall:.1f} | {processor:.1f} | {peak:.2f} |" for note, wall, processor, peak in rows),
        "",
        "Peak memory counts mapped pages of the kept arrays that were touched, which the system can take back.",
    ]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
