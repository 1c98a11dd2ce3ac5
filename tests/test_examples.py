"""The examples run, and say what they are meant to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_simclr_loss_is_a_drop_in() -> None:
    command = [sys.executable, EXAMPLES / "simclr_loss.py", "--steps", "8", "--batch", "32", "--rows", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = re.findall(r": loss ([\d.]+) -> ([\d.]+) in 8 steps", done.stdout)
    assert float(ours[1]) < float(ours[0])  # it learns
    for our, their in zip(ours, theirs, strict=True):
        assert float(our) == pytest.approx(float(their), rel=1e-3)
    value, gradient = re.search(r"differences: value (\S+), gradient (\S+) of", done.stdout).groups()
    assert float(value) < 1e-5
    assert float(gradient) < 1e-4
    assert len(re.findall(r"[\d.]+ ms and \d+ MB for 2 x 256 rows", done.stdout)) == 2


def test_pooling_in_a_module_compiles_and_learns() -> None:
    command = [sys.executable, EXAMPLES / "pooling_in_a_module.py", "--compiler", "aot_eager"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"before: ([\d.]+) .*after: ([\d.]+)", done.stdout, re.DOTALL).groups()
    assert float(before) < 0.65
    assert float(after) > 0.9
