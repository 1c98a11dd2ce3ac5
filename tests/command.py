"""The command line as tests call it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cmi_fast import cli

SMALL = ["--set", "batch_size=64", "--set", "epochs=2", "--set", "steps_per_epoch=5", "--set", "dim=16"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own: exit code, output and all."""
    code = "from cmi_fast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command in this process: quicker."""
    before, sys.argv = sys.argv, ["cmi-fast", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    code = stop.value.code
    return (0 if code is None else int(code)), captured.out, captured.err
