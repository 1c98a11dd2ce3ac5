"""Fixtures of every operator's tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch

from cmi_fast import _native


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """The kernels for GPUs take float64 in Triton's interpreter alone, so on a GPU such tests have nothing to test."""
    try:
        return (yield)
    except ValueError as error:
        if torch.empty(0).is_cuda and "': it has no kernel for torch.float64" in str(error):
            pytest.skip("float64 on a GPU")
        raise


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operator gets from torch holds NaN until written: reading it, or not writing it, shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=_native.isa_levels() or [pytest.param(None, marks=pytest.mark.skip("no compiled operators"))])
def isa_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every ISA level that this CPU can run, in turn."""
    before = torch.ops.cmi_fast.isa_level()
    _native.set_isa_level(request.param)
    yield request.param
    _native.set_isa_level(before)
