"""Autotuning of the Triton kernels: what it times, what it keeps, and that every size computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from checking import assert_within_budget, make_sequences, needs_triton
from torch import Tensor

from cmi_fast import functional, triton
from cmi_fast.triton import tuning

pytestmark = needs_triton

DTYPES = [torch.float32, torch.bfloat16]


class Clock:
    """In place of the timing: candidate ``fastest`` takes no time, and every run is counted."""

    def __init__(self, fastest: int) -> None:
        self.fastest = fastest
        self.timed = 0

    def seconds(self, run: Callable[[], None]) -> float:
        run()
        self.timed += 1
        return float(self.timed - 1 != self.fastest)


@pytest.fixture(autouse=True)
def _off_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuning, "_fastest", {})
    yield
    triton.autotune(False)


def chosen_of(sizes: list[tuple[str]], kind: str) -> str:
    runs: list[str] = []
    tuning.run_tuned(kind, sizes, runs.append)
    return runs[-1]


def test_takes_the_rules_size_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(fastest=1)
    monkeypatch.setattr(tuning, "_seconds", clock.seconds)
    assert chosen_of([("rule",), ("other",)], "kind") == "rule"
    assert clock.timed == 0


def test_takes_the_fastest_size_and_keeps_it_for_calls_of_that_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(fastest=1)
    monkeypatch.setattr(tuning, "_seconds", clock.seconds)
    triton.autotune()
    sizes = [("rule",), ("fast",), ("slow",)]
    assert [chosen_of(sizes, "kind") for _ in range(3)] == ["fast"] * 3
    assert clock.timed == 3
    assert chosen_of(sizes, "another kind") == "rule"  # all as slow there: the first
    assert clock.timed == 6
    triton.autotune(False)
    assert chosen_of(sizes, "kind") == "rule"


def test_times_nothing_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(fastest=1)
    monkeypatch.setattr(tuning, "_seconds", clock.seconds)
    triton.autotune()
    sizes = [("rule",), ("fast",)]
    assert chosen_of(sizes, "timed before") == "fast"
    monkeypatch.setattr(tuning, "_capturing", lambda: True)
    assert chosen_of(sizes, "timed before") == "fast"
    assert chosen_of(sizes, "new") == "rule"
    assert clock.timed == 2


def test_a_size_that_does_not_fit_the_gpu_is_never_taken() -> None:
    from triton.runtime.errors import OutOfResources

    def run(size: str) -> None:
        if size == "too large":
            raise OutOfResources(2, 1, "shared memory")
        runs.append(size)

    runs: list[str] = []
    triton.autotune()
    tuning.run_tuned("kind", [("rule",), ("too large",)], run)
    assert set(runs) == {"rule"}


def nt_xent(dtype: torch.dtype) -> tuple[str, dict[str, Any], list[Tensor], Tensor]:
    first = torch.randn(40, 20)
    inputs = [first.to(dtype), (first + torch.randn(40, 20)).to(dtype)]
    return "nt_xent_loss", {"reduction": "none"}, inputs, torch.randn(80)


def pool(dtype: torch.dtype) -> tuple[str, dict[str, Any], list[Tensor], Tensor]:
    items, categories, lengths = make_sequences(3, 35, 4, 20, dtype)
    options = {"lengths": lengths, "views": torch.rand(2, 3, 35) < 0.5}
    return "soft_assignment_pool", options, [items, categories], torch.randn(2, 3, 4, 20)


def softmax(dtype: torch.dtype) -> tuple[str, dict[str, Any], list[Tensor], Tensor]:
    inputs = [torch.randn(9, 3, 20).to(dtype), torch.randn(40, 20).to(dtype)]
    options = {"targets": torch.arange(9), "temperature": 1.0, "reduction": "none"}
    return "interest_softmax_loss", options, inputs, torch.randn(9)


def attentive(dtype: torch.dtype) -> tuple[str, dict[str, Any], list[Tensor], Tensor]:
    items, _, lengths = make_sequences(3, 35, 4, 20, dtype)
    inputs = [items, (torch.randn(40, 20) / 5).to(dtype), (torch.randn(3, 40) / 6).to(dtype)]
    return "self_attentive_pool", {"lengths": lengths}, inputs, torch.randn(3, 3, 20)


def routing(dtype: torch.dtype) -> tuple[str, dict[str, Any], list[Tensor], Tensor]:
    items, maps, lengths = make_sequences(3, 35, 12, 20, dtype)
    options = {"interests": 3, "lengths": lengths}
    return "capsule_routing", options, [items, maps.view(3, 4, 20) / 5], torch.randn(3, 3, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", [nt_xent, pool, softmax, attentive, routing])
def test_every_size_computes_the_same(monkeypatch: pytest.MonkeyPatch, make: Any, dtype: torch.dtype) -> None:
    name, options, inputs, cotangent = make(dtype)
    ours, exact = (
        partial(getattr(functional, name), **options, backend=backend) for backend in ("triton", "reference")
    )
    # As in tests/test_triton_kernels.py: a cosine's rounding over the temperature, and half types' own.
    tolerance = 2.5e-3 if dtype == torch.bfloat16 else 20 * torch.finfo(torch.float32).eps
    counts = {1}
    index = 0

    def run_one(kind: object, sizes: Sequence[tuple[Any, ...]], run: Callable[..., None]) -> None:
        counts.add(len(sizes))
        run(*sizes[index])

    monkeypatch.setattr(f"cmi_fast.triton.{name}.run_tuned", run_one)
    while index < max(counts):
        assert_within_budget(ours, exact, inputs, cotangent, tolerance)
        index += 1
    assert index > 3
