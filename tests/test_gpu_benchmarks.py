"""What a machine with a GPU is to run, rehearsed where none is: every line of the script that needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu_report
import pytest
import torch
from checking import needs_native, needs_triton
from torch import Tensor

ROOT = Path(__file__).parents[1]

# Inf-CL's kernels run on a GPU alone; this is what they compute.
INF_CL = """
def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
    assert q.shape[1] == head_dim
    scores = scale * q.float() @ k.float().T
    return scores.logsumexp(1) - scores.diagonal()
"""


def environment(*folders: Path) -> dict[str, str]:
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TRITON_INTERPRET": "1"}


@needs_native  # the report's machine has the compiled operators' threads
@needs_triton
@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    (tmp_path / "inf_cl.py").write_text(INF_CL)
    done = subprocess.run(
        [ROOT / "benchmarks/gpu/run.sh", "--rehearse", "--results", tmp_path / "gpu"],
        env={**environment(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    operators = {"nt_xent_loss", "soft_assignment_pool", "item_soft_assignment_pool, 3 views", "interest_softmax_loss"}
    assert {row["operator"] for row in rows} == {*operators, "CMI step"}
    for operator in (*operators, "CMI step"):
        variants = {row["variant"] for row in rows if row["operator"] == operator}
        assert variants >= {"cmi_fast", "eager", "torch.compile"}, operator
    assert "Inf-CL" in {row["variant"] for row in rows if "cross_view" in row["case"]}
    assert all(row["median_ms"] > 0 for row in rows)
    assert "- gpu: no GPU" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, ROOT / "benchmarks/gpu/gpu_benchmarks.py"], "gpu_benchmarks: CUDA is not available here"),
        ([ROOT / "benchmarks/gpu/run.sh"], "CUDA is not available here"),
    ],
    ids=["benchmarks", "script"],
)
def test_says_that_there_is_no_gpu(command: Sequence[str | Path], message: str) -> None:
    variables = {**environment(ROOT / "benchmarks"), "PYTHON": sys.executable}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


class Stub(gpu_report.GpuReport):
    """With times of its own, and no look at the machine."""

    ceilings = gpu_report.Ceilings(1.0, 1.0, 1.0)

    def __init__(self, time: float = 1.0) -> None:
        super().__init__(torch.device("cpu"), gpu_report.REHEARSAL)
        self.time = time

    def seconds(self, run: gpu_report.Run) -> float:
        run()
        return self.time


def one() -> list[Tensor]:
    return [torch.ones(())]


def no_memory() -> list[Tensor]:
    raise torch.OutOfMemoryError


def test_a_variant_without_enough_memory_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = Stub()
    runs = {"cmi_fast": one, "eager": no_memory, "torch.compile": one}
    report.compare_here("operator", "case", runs, tolerance=0, yardsticks={"other": no_memory})
    assert [row.variant for row in report.rows] == ["cmi_fast", "torch.compile"]
    assert capsys.readouterr().out.count("out of memory") == 2


def test_a_wrong_result_has_no_time() -> None:
    report = Stub()
    with pytest.raises(AssertionError, match="eager against cmi_fast"):
        report.compare_here("operator", "case", {"cmi_fast": one, "eager": lambda: [torch.zeros(())]}, tolerance=0.1)
    assert report.rows == []


@pytest.mark.parametrize(("time", "rounds"), [(1e-3, 20), (1.0, 5), (60.0, 3)])
def test_long_runs_have_fewer_rounds(time: float, rounds: int) -> None:
    times = Stub(time).times({"cmi_fast": one, "eager": one})
    assert [len(values) for values in times.values()] == [rounds, rounds]


def test_the_kernels_time_is_taken_by_cuda_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls on torch.cuda, in their order."""
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    report = gpu_report.GpuReport(torch.device("cuda"), gpu_report.REHEARSAL)
    run: Callable[[], list[Tensor]] = lambda: calls.append("run") or []  # noqa: E731
    assert report.seconds(run) == 0.25
    assert calls == ["synchronize", "record", "run", "record", "wait"]
