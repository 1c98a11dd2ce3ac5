"""Every operator and CMI's training step on a GPU, against PyTorch written well: eager, compiled, as a CUDA graph.

``run.sh`` beside this file runs it. ``--rehearse`` runs everything on the CPU, in Triton's interpreter and at tiny
sizes: a test of itself that measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_report import REHEARSAL, GpuReport, Sizes, compile_
from measure import Run, call_with
from torch import Tensor

import cmi_fast
from cmi_fast import _native
from cmi_fast.functional import (
    interest_softmax_loss,
    item_soft_assignment_pool,
    nt_xent_loss,
    soft_assignment_pool,
)
from cmi_fast.models.cmi import CMI

BATCHES = (256, 1024, 4096, 16384, 65536)
# Eager's own errors are the larger ones: it rounds scores to bfloat16, which the exponential magnifies.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
EAGER_BYTES = 20 * 2**30  # what one intermediate of eager may take; beyond, it is left out


def variants(
    ours: Callable[..., Tensor], eager: Callable[..., Tensor], inputs: Sequence[Tensor], *, fits: bool, compiled: bool
) -> dict[str, Run]:
    """Forward and backward of ours, and of eager and compiled PyTorch where they fit; eager comes first of them."""
    cotangent = torch.ones_like(ours(*inputs))
    runs = {"cmi_fast": call_with(ours, inputs, cotangent)}
    if fits:
        runs["eager"] = call_with(eager, inputs, cotangent)
        if compiled:
            runs["torch.compile"] = call_with(compile_(eager), inputs, cotangent)
    return runs


def add_cuda(runs: dict[str, Run], ours: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """The same in CUDA C++ beside Triton's, where it is built."""
    if _native.cuda_obstacle is None:
        runs["cmi_fast, CUDA C++"] = call_with(ours, inputs, torch.ones_like(ours(*inputs)))


def leaf(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()


def contrast(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    pairs, d = report.sizes.m * batch, report.sizes.d
    first, second = (leaf(pairs, d, device=report.device, dtype=dtype) for _ in range(2))

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
    if dtype == torch.float32:
        yardsticks["cmi_fast, tf32"] = call_with(
            partial(nt_xent_loss, fp32_precision="tf32", backend=backend),
            (first, second),
            torch.ones((), device=report.device),
        )
    fits = 4 * (2 * pairs) ** 2 <= EAGER_BYTES
    ours = partial(nt_xent_loss, backend=backend)
    runs = variants(ours, eager, (first, second), fits=fits, compiled=compiled)
    add_cuda(runs, partial(nt_xent_loss, backend="cuda"), (first, second))
    report.compare_here(
        "nt_xent_loss",
        f"|B|={batch} {str(dtype)[6:]}",
        runs,
        yardsticks=yardsticks,
        tolerance=TOLERANCES[dtype],
        flops=6 * (2 * pairs) ** 2 * d,  # forward 2 n^2 d, backward's row pass 4 n^2 d
    )


def contrast_cross_view(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    """CLIP's loss, which Inf-CL (package inf_cl) computes as well: in float32 and tiles, whatever comes in."""
    pairs, d = report.sizes.m * batch, report.sizes.d
    first, second = (leaf(pairs, d, device=report.device, dtype=dtype) for _ in range(2))

    def eager(first: Tensor, second: Tensor) -> Tensor:
        scores = (F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / 0.1).float()
        targets = torch.arange(pairs, device=scores.device)
        return (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2

    def inf_cl(first: Tensor, second: Tensor) -> Tensor:
        from inf_cl import cal_flash_loss

        rows = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        options = {"scale": 1 / 0.1, "head_dim": d}
        return (cal_flash_loss(*rows, **options).mean() + cal_flash_loss(*rows[::-1], **options).mean()) / 2

    ours = partial(nt_xent_loss, negatives="cross_view", backend=backend)
    fits = 4 * pairs**2 <= EAGER_BYTES
    runs = variants(ours, eager, (first, second), fits=fits, compiled=compiled)
    add_cuda(runs, partial(nt_xent_loss, negatives="cross_view", backend="cuda"), (first, second))
    if importlib.util.find_spec("inf_cl"):
        runs["Inf-CL"] = call_with(inf_cl, (first, second), torch.ones((), device=report.device))
    report.compare_here(
        "nt_xent_loss",
        f"cross_view, |B|={batch} {str(dtype)[6:]}",
        runs,
        tolerance=TOLERANCES[dtype],
        flops=12 * pairs**2 * d,  # forward 4 N^2 d, backward's row pass 8 N^2 d
    )


def sequences(report: GpuReport, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, L], lengths of the paper's mean [B], and the two views' membership with the whole before it [3, B, L]."""
    sizes, device = report.sizes, report.device
    ids = torch.randint(0, sizes.catalogue, (batch, sizes.length), device=device)
    lengths = torch.randint(2 * sizes.mean_length - sizes.length, sizes.length + 1, (batch,), device=device)
    views = torch.rand(3, batch, sizes.length, device=device) < 0.5
    views[0] = True
    return ids, lengths, views


def pool(unit: Tensor, categories: Tensor, member: Tensor) -> Tensor:
    """Eager pooling of unit rows [B, L, d] for members [V, B, L]: the assignment is computed once."""
    assignment = torch.softmax(unit @ F.normalize(categories, dim=-1).T / 0.1, dim=-1)
    return torch.stack([(assignment * view[..., None]).transpose(1, 2) @ unit for view in member])


def pooling(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    ids, lengths, views = sequences(report, batch)
    m, d, length = report.sizes.m, report.sizes.d, report.sizes.length
    member = torch.arange(length, device=report.device) < lengths[:, None]
    table = leaf(report.sizes.catalogue, d, device=report.device, dtype=dtype)
    categories = leaf(m, d, device=report.device, dtype=dtype)
    items = leaf(batch, length, d, device=report.device, dtype=dtype)
    rows, size = int(lengths.sum()), dtype.itemsize
    # Rows, interests and cotangents once each way; the gradient of padded items, or of the table, written whole.
    shared = 2 * rows * d * size + 2 * batch * m * d * size

    def eager_items(items: Tensor, categories: Tensor) -> Tensor:
        return pool(F.normalize(items, dim=-1), categories, member[None])[0]

    def eager_ids(table: Tensor, categories: Tensor) -> Tensor:
        return pool(F.normalize(F.embedding(ids, table), dim=-1), categories, member & views)

    case = f"|B|={batch} {str(dtype)[6:]}"
    ours_items = partial(soft_assignment_pool, lengths=lengths)
    ours_ids = partial(item_soft_assignment_pool, ids, lengths=lengths, views=views)
    for operator, ours, eager, inputs, traffic in (
        ("soft_assignment_pool", ours_items, eager_items, (items, categories), shared + items.nbytes),
        (
            "item_soft_assignment_pool, 3 views",
            ours_ids,
            eager_ids,
            (table, categories),
            shared + 4 * batch * m * d * size + table.nbytes,
        ),
    ):
        runs = variants(partial(ours, backend=backend), eager, inputs, fits=True, compiled=compiled)
        add_cuda(runs, partial(ours, backend="cuda"), inputs)
        report.compare_here(operator, case, runs, tolerance=TOLERANCES[dtype], traffic=traffic)


def softmax(report: GpuReport, batch: int, dtype: torch.dtype, backend: str, compiled: bool) -> None:
    targets = torch.arange(batch, device=report.device)
    m, d = report.sizes.m, report.sizes.d
    shapes = (batch, m, d), (2 * batch, d), (batch, d)
    inputs = [(0.3 * leaf(*shape, device=report.device, dtype=dtype)).detach().requires_grad_() for shape in shapes]

    def eager(interests: Tensor, candidates: Tensor, general: Tensor) -> Tensor:
        queries = interests / 0.1 + general[:, None]
        return F.cross_entropy((queries @ candidates.T).amax(1).float(), targets)

    def ours(interests: Tensor, candidates: Tensor, general: Tensor, backend: str) -> Tensor:
        return interest_softmax_loss(interests, candidates, targets, general, backend=backend)

    fits = 4 * batch * m * 2 * batch <= EAGER_BYTES
    runs = variants(partial(ours, backend=backend), eager, inputs, fits=fits, compiled=compiled)
    add_cuda(runs, partial(ours, backend="cuda"), inputs)
    report.compare_here(
        "interest_softmax_loss",
        f"|B|={batch}, 2|B| candidates, {str(dtype)[6:]}",
        runs,
        tolerance=TOLERANCES[dtype],
        flops=6 * batch * 2 * batch * m * d,
    )


def step(report: GpuReport, batch: int, backend: str, compiled: bool) -> None:
    """Loss, gradients and Adam of CMI; each variant trains a model of its own from the same weights."""
    ids, lengths, views = sequences(report, batch)
    sizes = report.sizes
    targets = [torch.randint(0, sizes.catalogue, (batch,), device=report.device) for _ in range(2)]

    def train(backend: str, compiled: bool) -> Run:
        torch.manual_seed(0)
        model = CMI(sizes.catalogue, interests=sizes.m, dim=sizes.d, backend=backend).to(report.device)
        on_gpu = report.device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=on_gpu)
        loss = compile_(model.loss) if compiled else model.loss

        def run() -> list[Tensor]:
            optimizer.zero_grad(set_to_none=True)
            total = loss(ids, lengths, views[1:], *targets).total
            total.backward()
            optimizer.step()
            return [total.detach()]

        return run

    runs = {"cmi_fast": train(backend, False)}
    if 4 * (2 * sizes.m * batch) ** 2 <= EAGER_BYTES:
        runs["eager"] = train("reference", False)
        if compiled:
            runs["torch.compile"] = train("reference", True)
    report.compare_here("CMI step", f"|B|={batch} float32", runs, tolerance=1e-3)


def run_all(report: GpuReport, batches: Sequence[int], backend: str, compiled: bool) -> None:
    for batch in batches:
        for dtype in TOLERANCES:
            torch.manual_seed(0)
            contrast(report, batch, dtype, backend, compiled)
            contrast_cross_view(report, batch, dtype, backend, compiled)
            pooling(report, batch, dtype, backend, compiled)
            softmax(report, batch, dtype, backend, compiled)
        step(report, batch, backend, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="numbers of users, |B|")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu"), help="STEM of .json and .md")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes: measures nothing")
    options = parser.parse_args()
    if options.rehearse:
        report = GpuReport(torch.device("cpu"), REHEARSAL, rounds=2)
        run_all(report, [3], "triton", compiled=True)
        report.write(options.results)
        return
    if not torch.cuda.is_available():
        parser.exit(2, "gpu_benchmarks: CUDA is not available here\n")
    print(cmi_fast.build_info())
    report = GpuReport(torch.device("cuda"), Sizes())
    for batch in options.batches:
        run_all(report, [batch], "triton", compiled=batch <= 4096)
        report.write(options.results)  # what was measured stays, should a later size fail


if __name__ == "__main__":
    main()
