"""How benchmarks measure on a GPU: as everywhere, with CUDA's clock, allocator and ceilings, and as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from measure import Ceilings, Report, Run, assert_equal, copy_bandwidth, seconds, timed_row
from torch import Tensor

ROUNDS, SECONDS = 20, 10  # of a case: fewer rounds where they would take longer than that, but at least 3


@dataclass(frozen=True)
class Sizes:
    """Of a batch, beside the number of users: the paper's, and WeChat's catalogue."""

    m: int = 8
    d: int = 64
    length: int = 100
    mean_length: int = 58
    catalogue: int = 77_557


REHEARSAL = Sizes(m=2, d=8, length=6, mean_length=4, catalogue=30)


class GpuReport(Report):
    """Times by CUDA events, memory by the allocator's peak; ceilings measured in the same run."""

    def __init__(self, device: torch.device, sizes: Sizes, rounds: int = ROUNDS) -> None:
        super().__init__(timed=True)
        self.device = device
        self.sizes = sizes
        self.rounds = rounds

    def compare_here(
        self,
        operator: str,
        case: str,
        variants: dict[str, Run],
        *,
        tolerance: float,
        yardsticks: dict[str, Run] | None = None,
        flops: float | None = None,
        traffic: float | None = None,
    ) -> None:
        """As ``compare``; ``yardsticks`` compute something else of the same size, and are not compared."""
        ours, *others = variants
        expected = variants[ours]()
        runs = {ours: variants[ours]}

        def add(name: str, run: Run, graph: bool = False) -> bool:
            """Whether the run fits this GPU's memory."""
            try:
                if graph:
                    run = graphed(run)
                if name in others:
                    assert_equal(run(), expected, tolerance, f"{operator} {case}: {name} against {ours}")
                self.seconds(run)
            except torch.OutOfMemoryError:
                print(f"{operator:28}{case:36}{name:32}    out of memory", flush=True)
                torch.cuda.empty_cache()
                return False
            runs[name] = run
            return True

        added = [name for name in others if add(name, variants[name])]
        if self.device.type == "cuda":
            for name in (ours, *added[:1]):
                add(f"{name}, CUDA graph", variants[name], graph=True)
        for name, run in (yardsticks or {}).items():
            add(name, run)
        times = self.times(runs)
        for name, run in runs.items():
            memory = self.extra_memory(run)
            of_peak = flops, traffic, memory, self.ceilings, "bfloat16" in case
            row = timed_row(operator, case, name, times[name], times[ours], *of_peak)
            self.rows.append(row)
            print(f"{operator:28}{case:36}{name:32}{row.median_ms:10.3f} ms", flush=True)

    def times(self, runs: dict[str, Run]) -> dict[str, list[float]]:
        """Seconds of each run, round by round."""
        warm = sum(min(self.seconds(run) for _ in range(2)) for run in runs.values())
        rounds = max(min(3, self.rounds), min(self.rounds, int(SECONDS / warm)))
        rows = [[self.seconds(run) for run in runs.values()] for _ in range(rounds)]
        return {name: [row[i] for row in rows] for i, name in enumerate(runs)}

    def seconds(self, run: Run) -> float:
        if self.device.type != "cuda":
            return seconds(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def extra_memory(self, run: Run) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    @cached_property
    def ceilings(self) -> Ceilings:
        """Of large products, in float32 without TensorFloat-32 and in bfloat16, and of a large copy."""
        if self.device.type != "cuda":
            return Ceilings(1.0, 1.0, copy_bandwidth())

        def product(dtype: torch.dtype) -> float:
            matrix = torch.randn(8192, 8192, device=self.device, dtype=dtype)
            return 2 * 8192**3 / min(self.seconds(lambda: [matrix @ matrix]) for _ in range(20)) / 1e9

        source = torch.ones(2**30 // 4, device=self.device)
        target = torch.empty_like(source)
        copy = min(self.seconds(lambda: [target.copy_(source)]) for _ in range(20))
        return Ceilings(product(torch.float32), product(torch.bfloat16), 2 * source.nbytes / copy / 1e9)

    def machine(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "no GPU"
        return {**super().machine(), "gpu": name}

    def introduction(self) -> list[str]:
        return [
            "Written by `benchmarks/gpu/run.sh`, on",
            "",
            *(f"- {key.replace('_', ' ')}: {value}" for key, value in self.machine().items() if value is not None),
            "",
            "Variants of a case run in turn, round by round, timed by CUDA events around the call; a ratio is the",
            "median over rounds of the variant's time to ours in the same round. No time is printed for a wrong",
            "result. The shares are of the ceilings above, measured in the same run. Memory is the allocator's peak",
            "above what was there.",
        ]


def graphed(run: Run) -> Run:
    """``run`` captured once and replayed; what it returns is overwritten by every replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return results

    return replay


def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled; in a rehearsal only traced, which takes seconds less."""
    return torch.compile(function, backend="inductor" if torch.cuda.is_available() else "aot_eager")
