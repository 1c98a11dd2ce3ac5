"""Every operator and CMI's training step on a GPU, against PyTorch written well: eager, compiled, as a CUDA graph.

``run.sh`` beside this file runs it. On the CPU, with tiny sizes, it is a test of itself and measures nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import Ceilings, Report, Run, _row, assert_equal, call_with, copy_bandwidth, seconds
from torch import Tensor

import cmi_fast
from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    soft_assignment_pool,
)
from cmi_fast.models.cmi import CMI

BATCHES = (256, 1024, 4096, 16384, 65536)
M, D, LENGTH, MEAN_LENGTH, CATALOGUE = 8, 64, 100, 58, 77_557
# Eager's own errors are the larger ones: it rounds scores to bfloat16, which the exponential magnifies.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
EAGER_BYTES = 40 * 2**30  # what one intermediate of eager may take; beyond, it is left out


class GpuReport(Report):
    """Times by CUDA events, memory by the allocator's peak; ceilings measured in the same run."""

    def __init__(self, device: torch.device, rounds: int = 20) -> None:
        super().__init__(timed=True)
        self.device = device
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
        for name in others:
            assert_equal(variants[name](), expected, tolerance, f"{operator} {case}: {name} against {ours}")
        if self.device.type == "cuda":
            variants = {**variants, **{f"{name}, CUDA graph": graphed(variants[name]) for name in (ours, *others[:1])}}
        variants = {**variants, **(yardsticks or {})}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.rounds + 3):
            for name, run in variants.items():
                times[name].append(self.seconds(run))
        for name, run in variants.items():
            memory = self.extra_memory(run)
            timed = times[name][3:], times[ours][3:]
            row = _row(operator, case, name, *timed, flops, traffic, memory, self.ceilings, "bfloat16" in case)
            self.rows.append(row)
            print(f"{operator:28}{case:36}{name:32}{row.median_ms:10.3f} ms", flush=True)

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


def variants(
    ours: Callable[..., Tensor], eager: Callable[..., Tensor], inputs: Sequence[Tensor], *, fits: bool, compiled: bool
) -> dict[str, Run]:
    """Forward and backward of ours, and of eager and compiled PyTorch where they fit."""
    cotangent = torch.ones_like(ours(*inputs))
    runs = {"cmi_fast": call_with(ours, inputs, cotangent)}
    if fits:
        runs["eager"] = call_with(eager, inputs, cotangent)
        if compiled:
            runs["torch.compile"] = call_with(torch.compile(eager), inputs, cotangent)
    return runs


def leaf(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()


def contrast(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    pairs = M * batch
    first, second = (leaf(pairs, D, device=report.device, dtype=dtype) for _ in range(2))

    def eager(first: Tensor, second: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([first, second]), dim=-1)
        scores = rows @ rows.T / 0.1
        scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
        return F.cross_entropy(scores.float(), torch.arange(len(rows), device=rows.device).roll(pairs))

    def chunked(first: Tensor, second: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([first, second]), dim=-1)
        targets = torch.arange(len(rows), device=rows.device).roll(pairs)
        return F.linear_cross_entropy(rows / 0.1, rows, targets, options=torch.nn.LinearCrossEntropyOptions())

    yardsticks = {}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch's chunked one
        yardsticks["linear_cross_entropy (another loss)"] = call_with(
            chunked, (first, second), torch.ones((), device=report.device)
        )
    fits = 4 * (2 * pairs) ** 2 <= EAGER_BYTES
    report.compare_here(
        "nt_xent_loss",
        f"|B|={batch} {str(dtype)[6:]}",
        variants(partial(nt_xent_loss, backend=backend), eager, (first, second), fits=fits, compiled=compiled),
        yardsticks=yardsticks,
        tolerance=TOLERANCES[dtype],
        flops=6 * (2 * pairs) ** 2 * D,  # forward 2 n^2 d, backward's row pass 4 n^2 d
    )


def sequences(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, L], lengths of the paper's mean [B], and the two views' membership with the whole before it [3, B, L]."""
    ids = torch.randint(0, CATALOGUE, (batch, LENGTH), device=device)
    lengths = torch.randint(2 * MEAN_LENGTH - LENGTH, LENGTH + 1, (batch,), device=device)
    views = torch.rand(3, batch, LENGTH, device=device) < 0.5
    views[0] = True
    return ids, lengths, views


def pool(unit: Tensor, categories: Tensor, member: Tensor) -> Tensor:
    """Eager pooling of unit rows [B, L, d] for members [V, B, L]: the assignment is computed once."""
    assignment = torch.softmax(unit @ F.normalize(categories, dim=-1).T / 0.1, dim=-1)
    return torch.stack([(assignment * view[..., None]).transpose(1, 2) @ unit for view in member])


def pooling(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    ids, lengths, views = sequences(batch, report.device)
    member = torch.arange(LENGTH, device=report.device) < lengths[:, None]
    table = leaf(CATALOGUE, D, device=report.device, dtype=dtype)
    categories = leaf(M, D, device=report.device, dtype=dtype)
    items = leaf(batch, LENGTH, D, device=report.device, dtype=dtype)
    rows, size = int(lengths.sum()), dtype.itemsize
    # Rows, interests and cotangents once each way; the gradient of padded items, or of the table, written whole.
    shared = 2 * rows * D * size + 2 * batch * M * D * size
    options = {"lengths": lengths, "backend": backend}

    def eager_items(items: Tensor, categories: Tensor) -> Tensor:
        return pool(F.normalize(items, dim=-1), categories, member[None])[0]

    def eager_ids(table: Tensor, categories: Tensor) -> Tensor:
        return pool(F.normalize(F.embedding(ids, table), dim=-1), categories, member & views)

    def ours_ids(table: Tensor, categories: Tensor) -> Tensor:
        return item_soft_assignment_pool(ids, table, categories, views=views, **options)

    case = f"|B|={batch} {str(dtype)[6:]}"
    ours = partial(soft_assignment_pool, **options)
    for operator, runs, traffic in (
        (
            "soft_assignment_pool",
            variants(ours, eager_items, (items, categories), fits=True, compiled=compiled),
            shared + items.nbytes,
        ),
        (
            "item_soft_assignment_pool, 3 views",
            variants(ours_ids, eager_ids, (table, categories), fits=True, compiled=compiled),
            shared + 4 * batch * M * D * size + table.nbytes,
        ),
    ):
        report.compare_here(operator, case, runs, tolerance=TOLERANCES[dtype], traffic=traffic)


def softmax(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    targets = torch.arange(batch, device=report.device)
    shapes = (batch, M, D), (2 * batch, D), (batch, D)
    inputs = [(0.3 * leaf(*shape, device=report.device, dtype=dtype)).detach().requires_grad_() for shape in shapes]

    def eager(interests: Tensor, candidates: Tensor, general: Tensor) -> Tensor:
        queries = interests / 0.1 + general[:, None]
        return F.cross_entropy((queries @ candidates.T).amax(1).float(), targets)

    def ours(interests: Tensor, candidates: Tensor, general: Tensor) -> Tensor:
        return interest_softmax_loss(interests, candidates, targets, general, backend=backend)

    report.compare_here(
        "interest_softmax_loss",
        f"|B|={batch}, 2|B| candidates, {str(dtype)[6:]}",
        variants(ours, eager, inputs, fits=4 * batch * M * 2 * batch <= EAGER_BYTES, compiled=compiled),
        tolerance=TOLERANCES[dtype],
        flops=6 * batch * 2 * batch * M * D,
    )


def step(report: GpuReport, batch: int, backend: str, compiled: bool) -> None:
    """Loss, gradients and Adam of CMI; each variant trains a model of its own from the same weights."""
    ids, lengths, views = sequences(batch, report.device)
    targets = [torch.randint(0, CATALOGUE, (batch,), device=report.device) for _ in range(2)]

    def train(backend: str, compiled: bool) -> Run:
        torch.manual_seed(0)
        model = CMI(CATALOGUE, interests=M, dim=D, backend=backend).to(report.device)
        on_gpu = report.device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=on_gpu)
        loss = torch.compile(model.loss) if compiled else model.loss

        def run() -> list[Tensor]:
            optimizer.zero_grad(set_to_none=True)
            total = loss(ids, lengths, views[1:], *targets).total
            total.backward()
            optimizer.step()
            return [total.detach()]

        return run

    runs = {"cmi_fast": train(backend, False)}
    if 4 * (2 * M * batch) ** 2 <= EAGER_BYTES:
        runs["eager"] = train("reference", False)
        if compiled:
            runs["torch.compile"] = train("reference", True)
    report.compare_here("CMI step", f"|B|={batch} float32", runs, tolerance=1e-3)


def run_all(report: GpuReport, batches: Sequence[int], backend: str, compiled: bool) -> None:
    for batch in batches:
        for dtype in TOLERANCES:
            torch.manual_seed(0)
            contrast(report, batch, dtype, backend, compiled)
            pooling(report, batch, dtype, backend, compiled)
            softmax(report, batch, dtype, backend, compiled)
        step(report, batch, backend, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="numbers of users, |B|")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu"), help="STEM of .json and .md")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "gpu_benchmarks: CUDA is not available here\n")
    print(cmi_fast.build_info())
    report = GpuReport(torch.device("cuda"))
    for batch in options.batches:
        run_all(report, [batch], "triton", compiled=batch <= 4096)
        report.write(options.results)  # what was measured stays, should a later size fail


if __name__ == "__main__":
    main()
