"""The benchmarks for GPUs run where none is, at tiny sizes: every case, compared with PyTorch, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_benchmarks
import pytest
import torch
from checking import has_triton, needs_native

ROOT = Path(__file__).parents[1]


@needs_native  # the report's machine has the compiled operators' threads
def test_every_case_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"LENGTH": 6, "MEAN_LENGTH": 4, "CATALOGUE": 30, "M": 2, "D": 8}.items():
        monkeypatch.setattr(gpu_benchmarks, name, size)
    report = gpu_benchmarks.GpuReport(torch.device("cpu"), rounds=2)
    gpu_benchmarks.run_all(report, [3], "triton" if has_triton else "auto", compiled=False)
    report.write(tmp_path / "gpu")
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    operators = {"nt_xent_loss", "soft_assignment_pool", "item_soft_assignment_pool, 3 views", "interest_softmax_loss"}
    assert {row["operator"] for row in rows} == {*operators, "CMI step"}
    assert {row["variant"] for row in rows} >= {"cmi_fast", "eager"}
    assert all(row["median_ms"] > 0 for row in rows)
    assert "- gpu: no GPU" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmarks'}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, ROOT / "benchmarks/gpu/gpu_benchmarks.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu_benchmarks: CUDA is not available here\n"
