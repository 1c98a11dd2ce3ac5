"""How benchmarks measure: variants in turn, ceilings and memory of the same run, no time for a wrong result."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from step_table import step_table
from torch import Tensor

import cmi_fast
from cmi_fast import _native

Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One variant of one case. Times in milliseconds; ``ratio`` is how many times slower than ours it is."""

    operator: str
    case: str
    variant: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]
    gflops: float | None
    peak_share: float | None
    gigabytes_per_second: float | None
    bandwidth_share: float | None
    extra_mb: float | None


@dataclass(frozen=True)
class Ceilings:
    """GFLOP/s of float32 multiply-adds and of bfloat16 dot products (0: the CPU has none), GB/s of a copy."""

    fma: float
    bfloat16: float
    copy: float


@dataclass
class Report:
    """The measurements of a session. ``timed`` is false in a smoke test, where everything runs once."""

    timed: bool
    rows: list[Row] = field(default_factory=list)

    def compare(
        self,
        benchmark: Any,
        operator: str,
        case: str,
        variants: dict[str, Run],
        *,
        tolerance: float,
        flops: float | None = None,
        traffic: float | None = None,
        rounds: int = 25,
        bfloat16: bool = False,
        yardsticks: Sequence[str] = (),
    ) -> dict[str, float]:
        """Time ``variants`` round by round, one after the other; the first is ours. Returns their ratios to ours.

        Args:
            tolerance: largest error of any result, relative to the largest magnitude of our result.
            flops, traffic: what an ideal implementation computes, and moves in bytes; for the shares of the ceilings.
            bfloat16: ours computes in bfloat16, so that the peak of its dot products is the ceiling.
            yardsticks: variants that compute something else, of about the same work.
        """
        ours, *others = variants
        expected = variants[ours]()
        for name in set(others).difference(yardsticks):
            assert_equal(variants[name](), expected, tolerance, f"{operator} {case}: {name} against {ours}")
        times: dict[str, list[float]] = {name: [] for name in variants}

        def time_others() -> None:
            for name in others:
                times[name].append(seconds(variants[name]))

        benchmark.pedantic(variants[ours], setup=time_others, rounds=rounds, warmup_rounds=2 if rounds > 2 else 0)
        if not self.timed:
            return {}
        times[ours] = benchmark.stats.stats.data
        times = {name: values[-rounds:] for name, values in times.items()}  # without the warm-up's
        for name, values in times.items():
            self.rows.append(
                timed_row(
                    operator,
                    case,
                    name,
                    values,
                    times[ours],
                    flops,
                    traffic,
                    extra_memory(variants[name]),
                    self.ceilings,
                    bfloat16 and name == ours,
                )
            )
        return {row.variant: row.ratio for row in self.rows[-len(variants) :]}

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured once a session."""
        return Ceilings(fma_peak(), fma_peak(bfloat16=True), copy_bandwidth())

    def machine(self) -> dict[str, Any]:
        ceilings = self.ceilings
        return {
            "date": date.today().isoformat(),
            "processor": _processor(),
            "python": platform.python_version(),
            "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
            **{key: value for key, value in cmi_fast.build_info().items() if key != "isa_supported"},
            "fma_peak_gflops": round(ceilings.fma, 1),
            "bfloat16_peak_gflops": round(ceilings.bfloat16, 1) or None,
            "copy_bandwidth_gb_s": round(ceilings.copy, 1),
        }

    def introduction(self) -> list[str]:
        """What the table's reader must know: how it was measured, and against which ceilings."""
        return [
            f"Written by `{shlex.join(['pytest', *sys.argv[1:]])}`, on",
            "",
            *(f"- {key.replace('_', ' ')}: {value}" for key, value in self.machine().items() if value is not None),
            "",
            "Variants of a case run in turn, round by round; a ratio is the median over rounds of the variant's time",
            "to ours in the same round. No time is printed for a wrong result. FLOP and bytes are what an ideal",
            "implementation needs, so the shares of the ceilings (multiply-adds in registers, of bfloat16 where ours",
            "computes in it, and a large copy, measured in the same run) compare variants. Memory is the peak of one",
            "run above what was there, results included.",
            "",
            "How long 33.9 million plays take to read: [performance-large-log.md](performance-large-log.md).",
        ]

    def markdown(self) -> str:
        lines = [
            "# Performance",
            "",
            *self.introduction(),
            "",
            "| operator | case | variant | median ms (quartiles) | times ours (quartiles) | GFLOP/s (of peak) "
            "| GB/s (of copy) | extra MB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            low, high = row.quartiles_ms
            flops = "" if row.gflops is None else f"{row.gflops:.0f} ({row.peak_share:.0%})"
            traffic = (
                "" if row.bandwidth_share is None else f"{row.gigabytes_per_second:.1f} ({row.bandwidth_share:.0%})"
            )
            memory = "" if row.extra_mb is None else f"{row.extra_mb:.0f}"
            ratio = f"{row.ratio:.2f} ({row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f})"
            lines.append(
                f"| {row.operator} | {row.case} | {row.variant} | {row.median_ms:.3f} ({low:.3f}-{high:.3f}) "
                f"| {ratio} | {flops} | {traffic} | {memory} |"
            )
        return "\n".join([*lines, *step_table(self.rows)])

    def write(self, stem: Path) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": self.machine(), "rows": [asdict(row) for row in self.rows]}
        stem.with_name(f"{stem.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        stem.with_name(f"{stem.name}.md").write_text(self.markdown() + "\n")


def call_with(function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor | None) -> Run:
    """A run of ``function(*inputs)``: its result, and with a cotangent the gradients of the inputs that need one."""
    leaves = [x for x in inputs if x.requires_grad]

    def run() -> list[Tensor]:
        if cotangent is None:
            with torch.no_grad():
                return [function(*inputs)]
        output = function(*inputs)
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]

    return run


def at_level(level: str, run: Run) -> Run:
    """The same run with the kernels of another ISA level."""

    def run_at_level() -> Sequence[Tensor]:
        before = torch.ops.cmi_fast.isa_level()
        _native.set_isa_level(level)
        try:
            return run()
        finally:
            _native.set_isa_level(before)

    return run_at_level


def assert_equal(result: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, what: str) -> None:
    for index, (left, right) in enumerate(zip(result, expected, strict=True)):
        # Inputs are of order one: what should be zero may be a rounding error of that.
        error = (left.double() - right.double()).abs().max() / right.double().abs().max().clamp_min(1)
        assert error <= tolerance, f"{what}: result {index} differs by {error:.1e}"


def seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def extra_memory(run: Run) -> float | None:
    """Most memory in MB that one run takes beside what was there, results included. Linux only."""
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not refs.exists():
        return None

    def resident(key: str) -> int:
        return int(status.read_text().split(f"{key}:")[1].split()[0])

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory kept for reuse would hide what the run takes
    before = resident("VmRSS")
    refs.write_text("5")  # forgets the peak
    run()
    return (resident("VmHWM") - before) / 1024


def fma_peak(bfloat16: bool = False) -> float:
    """GFLOP/s of multiply-adds in registers on all threads: the best of several short runs.

    Of float32, or of bfloat16 dot products summed in float32: 0 where the ISA level has none.
    """
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        flops = torch.ops.cmi_fast.fma_ceiling_flops(1_000_000, bfloat16)
        best = max(best, flops / (time.perf_counter() - started))
    return best / 1e9


def copy_bandwidth() -> float:
    """GB/s, read and written, of a copy too large for any cache."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    times = [seconds(lambda: [target.copy_(source)]) for _ in range(7)]
    return 2 * source.nbytes / min(times) / 1e9


def timed_row(
    operator: str,
    case: str,
    variant: str,
    times: list[float],
    ours: list[float],
    flops: float | None,
    traffic: float | None,
    extra_mb: float | None,
    ceilings: Ceilings,
    bfloat16: bool,
) -> Row:
    low, median, high = statistics.quantiles(times, n=4)
    ratios = statistics.quantiles([a / b for a, b in zip(times, ours, strict=True)], n=4)
    gflops = None if flops is None else flops / median / 1e9
    peak = ceilings.bfloat16 if bfloat16 and ceilings.bfloat16 else ceilings.fma
    rate = None if traffic is None else traffic / median / 1e9
    return Row(
        operator=operator,
        case=case,
        variant=variant,
        median_ms=1e3 * median,
        quartiles_ms=(1e3 * low, 1e3 * high),
        ratio=ratios[1],
        ratio_range=(ratios[0], ratios[2]),
        gflops=gflops,
        peak_share=None if gflops is None else gflops / peak,
        gigabytes_per_second=rate,
        bandwidth_share=None if rate is None else rate / ceilings.copy,
        extra_mb=extra_mb,
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
