"""``backend="cuda"``: what it says where it cannot run, which is everywhere without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cmi_fast import _native
from cmi_fast.functional import nt_xent_loss
from cmi_fast.ops.backend import choose_backend


@pytest.mark.skipif(_native.cuda_obstacle is None, reason="the CUDA kernels are there")
def test_says_what_stands_in_the_way() -> None:
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"nt_xent_loss cannot run on 'cuda': (torch|the package was installed)"):
        nt_xent_loss(rows, rows, backend="cuda")


def test_takes_cuda_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():  # without a GPU there is no other tensor on one
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert choose_backend("cuda", "nt_xent_loss", torch.empty(2, device="cuda", dtype=dtype)) == "cuda"
        with pytest.raises(ValueError, match=r"it has no kernel for torch\.float64"):
            choose_backend("cuda", "nt_xent_loss", torch.empty(2, device="cuda", dtype=torch.float64))
        with pytest.raises(ValueError, match="the tensors are on cpu"):
            choose_backend("cuda", "nt_xent_loss", torch.empty(2, device="cpu"))


def test_is_never_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_obstacle", None)
    with FakeTensorMode():
        assert choose_backend("auto", "nt_xent_loss", torch.empty(2, device="cuda")) != "cuda"


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
