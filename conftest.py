"""``pytest benchmarks/ --benchmark`` times; without the option every benchmark runs once, as a test of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton's kernels run on CPU tensors in its interpreter, which must be known before they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cmi_fast")
    group.addoption("--device", default="cpu", help="where tests of operators make their tensors (default: cpu)")
    group.addoption("--benchmark", action="store_true", help="time the benchmarks instead of running them once")
    group.addoption(
        "--benchmark-results",
        type=Path,
        default=Path("build/benchmark"),
        metavar="STEM",
        help="with --benchmark: write STEM.json and STEM.md (default: build/benchmark)",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_default_device(None if config.getoption("--device") == "cpu" else config.getoption("--device"))
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
    config.option.benchmark_quiet = True  # the table of ratios below says more


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[object]:
    """Collects the session's measurements; prints and writes them at its end."""
    from measure import Report

    report = Report(timed=request.config.getoption("--benchmark"))
    yield report
    if report.rows:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print("\n\n" + report.markdown())
        report.write(request.config.getoption("--benchmark-results"))
