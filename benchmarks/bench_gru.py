"""gru against torch.nn.GRU on padded items, forward and backward."""

from __future__ import annotations

import pytest
import torch
from checking import needs_native
from measure import Report, at_level, call_with
from torch import Tensor

from cmi_fast import _native
from cmi_fast.functional import gru

pytestmark = needs_native

TOLERANCE = 2e-5  # float32 against float32
# B, L, mean length, d = hidden
PAPER = (1024, 100, 58, 64)
CASES = [
    pytest.param(*PAPER, id="paper"),
    pytest.param(1024, 58, 58, 64, id="unpadded"),
    pytest.param(1, 100, 58, 64, id="B1"),
    pytest.param(16, 100, 58, 64, id="B16"),
    pytest.param(64, 100, 58, 64, id="B64"),
    pytest.param(256, 50, 50, 128, id="d128-unpadded"),
]


def make(batch: int, length: int, mean: int, d: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Items and parameters, lengths, and a cotangent."""
    torch.manual_seed(0)
    parameters = torch.nn.GRU(d, d).parameters()
    items = torch.randn(batch, length, d, requires_grad=True)
    spread = length - mean
    lengths = torch.randint(mean - spread, mean + spread + 1, (batch,))
    return [items, *parameters], lengths, torch.randn(batch, d)


def ours(items: Tensor, *parameters_and_lengths: Tensor) -> Tensor:
    return gru(items, *parameters_and_lengths, backend="cpu")


def padded(items: Tensor, *parameters_and_lengths: Tensor) -> Tensor:
    """What torch.nn.GRU runs, over the padding too: packing the sequences takes longer."""
    *parameters, lengths = parameters_and_lengths
    start = items.new_zeros(1, items.shape[0], items.shape[2])
    states, _ = torch.gru(items, start, parameters, True, 1, 0.0, True, False, True)
    return states[torch.arange(len(states)), lengths - 1]


@pytest.mark.parametrize(("batch", "length", "mean", "d"), CASES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_speed(
    benchmark: object,
    report: Report,
    request: pytest.FixtureRequest,
    batch: int,
    length: int,
    mean: int,
    d: int,
    backward: bool,
) -> None:
    inputs, lengths, cotangent = make(batch, length, mean, d)
    rows = int(lengths.sum())
    products = 3 if backward else 1  # of rows x 2 d x 3 d multiply-adds; gates computed again not counted
    report.compare(
        benchmark,
        "gru",
        request.node.callspec.id,
        {
            name: call_with(function, (*inputs, lengths), cotangent if backward else None)
            for name, function in {"cmi_fast": ours, "torch.nn.GRU": padded}.items()
        },
        tolerance=TOLERANCE,
        flops=2 * products * rows * 6 * d * d,
        rounds=10 if batch > 100 else 100,
    )


def packed(items: Tensor, *parameters_and_lengths: Tensor) -> Tensor:
    """What torch.nn.GRU runs on a packed sequence: without the padding."""
    *parameters, lengths = parameters_and_lengths
    sequence = torch.nn.utils.rnn.pack_padded_sequence(items, lengths, batch_first=True, enforce_sorted=False)
    start = items.new_zeros(1, items.shape[0], items.shape[2])
    _, last = torch.gru(sequence.data, sequence.batch_sizes, start, parameters, True, 1, 0.0, True, False)
    return last[0].index_select(0, sequence.unsorted_indices)


def test_packed(benchmark: object, report: Report) -> None:
    inputs, lengths, cotangent = make(*PAPER)
    report.compare(
        benchmark,
        "gru",
        "paper forward+backward, packed",
        {
            name: call_with(function, (*inputs, lengths), cotangent)
            for name, function in {"cmi_fast": ours, "torch.nn.GRU packed": packed}.items()
        },
        tolerance=TOLERANCE,
        rounds=3,
    )


def test_bfloat16(benchmark: object, report: Report) -> None:
    """torch's rounds every state to bfloat16, ours the results alone."""
    inputs, lengths, cotangent = make(*PAPER)
    inputs = [x.detach().bfloat16().requires_grad_() for x in inputs]
    report.compare(
        benchmark,
        "gru",
        "paper forward+backward, bfloat16",
        {
            name: call_with(function, (*inputs, lengths), cotangent.bfloat16())
            for name, function in {"cmi_fast": ours, "torch.nn.GRU": padded}.items()
        },
        tolerance=0.05,
        rounds=5,
    )


@pytest.mark.parametrize("level", _native.isa_levels())
def test_isa_levels(benchmark: object, report: Report, level: str) -> None:
    inputs, lengths, cotangent = make(*PAPER)
    best = _native.isa_levels()[-1]
    run_best = call_with(ours, (*inputs, lengths), cotangent)
    report.compare(
        benchmark,
        "gru",
        f"paper forward+backward, {level} against {best}",
        {best: run_best, f"level {level}": at_level(level, run_best)},
        tolerance=TOLERANCE,
        rounds=10,
    )
