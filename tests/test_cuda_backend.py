"""``backend="cuda"``: what it says where it cannot run, which is everywhere without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmi_fast import _native
from cmi_fast.functional import interest_softmax_loss, item_soft_assignment_pool, nt_xent_loss, soft_assignment_pool
from cmi_fast.ops.backend import WITH_CUDA_KERNELS, choose_backend
from cmi_fast.ops.interest_softmax_loss import _fake as fake_main_loss

ROWS = torch.ones(2, 3)
CALLS = {
    "interest_softmax_loss": (interest_softmax_loss, (ROWS[None], ROWS, torch.zeros(1, dtype=torch.int64))),
    "item_soft_assignment_pool": (item_soft_assignment_pool, (torch.zeros(1, 4, dtype=torch.int64), ROWS, ROWS)),
    "nt_xent_loss": (nt_xent_loss, (ROWS, ROWS)),
    "soft_assignment_pool": (soft_assignment_pool, (ROWS[None], ROWS)),
}


@pytest.mark.skipif(_native.cuda_obstacle is None, reason="the CUDA kernels are there")
@pytest.mark.parametrize("operator", WITH_CUDA_KERNELS)
def test_says_what_stands_in_the_way(operator: str) -> None:
    function, arguments = CALLS[operator]
    with pytest.raises(ValueError, match=rf"{operator} cannot run on 'cuda': (torch|the package was installed)"):
        function(*arguments, backend="cuda")


@pytest.mark.parametrize("operator", WITH_CUDA_KERNELS)
def test_takes_cuda_tensors_alone(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():  # without a GPU there is no other tensor on one
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert choose_backend("cuda", operator, torch.empty(2, device="cuda", dtype=dtype)) == "cuda"
        with pytest.raises(ValueError, match=r"it has no kernel for torch\.float64"):
            choose_backend("cuda", operator, torch.empty(2, device="cuda", dtype=torch.float64))
        with pytest.raises(ValueError, match="the tensors are on cpu"):
            choose_backend("cuda", operator, torch.empty(2, device="cpu"))


@pytest.mark.parametrize("operator", WITH_CUDA_KERNELS)
def test_is_never_taken_unasked(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():
        assert choose_backend("auto", operator, torch.empty(2, device="cuda")) != "cuda"


def test_takes_a_limited_number_of_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():
        items, table, many = (torch.empty(*shape, device="cuda") for shape in ((2, 3, 4), (9, 4), (65, 4)))
        ids = torch.empty(2, 3, device="cuda", dtype=torch.int64)
        message = "cannot run on 'cuda': it takes at most 64 categories, found 65"
        with pytest.raises(ValueError, match=f"soft_assignment_pool {message}"):
            soft_assignment_pool(items, many, backend="cuda")
        with pytest.raises(ValueError, match=f"item_soft_assignment_pool {message}"):
            item_soft_assignment_pool(ids, table, many, backend="cuda")


def test_takes_a_limited_number_of_interests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():
        interests, candidates = (torch.empty(*shape, device="cuda") for shape in ((2, 65, 4), (9, 4)))
        targets = torch.empty(2, device="cuda", dtype=torch.int64)
        message = "interest_softmax_loss cannot run on 'cuda': it takes at most 64 interests, found 65"
        with pytest.raises(ValueError, match=message):
            interest_softmax_loss(interests, candidates, targets, backend="cuda")


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("none", (2,))])
def test_shapes_of_the_main_loss_are_known_before_it_runs(reduction: str, shape: tuple[int, ...]) -> None:
    with FakeTensorMode():
        interests, candidates = (torch.empty(*x, device="cuda", dtype=torch.bfloat16) for x in ((2, 3, 4), (9, 4)))
        loss, saved = fake_main_loss(interests, candidates, *[None] * 5, 0.1, None, reduction)  # type: ignore[arg-type]
        for found, expected in (loss, shape), (saved, (2, 2)):
            assert (found.shape, found.dtype, found.device.type) == (expected, torch.float32, "cuda")


def test_a_library_that_cannot_be_loaded_is_no_error_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_native, "__file__", f"{tmp_path}/_native.py")
    assert "installed without CUDA kernels" in str(_native._load_cuda())
    with open(f"{tmp_path}/libcmi_fast_cuda.so", "w") as library:
        library.write("no library")
    assert "cannot be loaded: " in str(_native._load_cuda())
