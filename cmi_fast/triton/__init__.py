"""Triton kernels of the operators, for NVIDIA GPUs; on CPU tensors in Triton's interpreter.

This module does not import Triton: the kernels do, when first called.

float64 runs in the interpreter alone, where it lets ``gradcheck`` test the kernels themselves: on a GPU nobody needs
it, and Triton 3.7 does not compile all of it.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from cmi_fast.triton.tuning import autotune as autotune

TESTED_ON: tuple[str, ...] = ()  # the GPUs on which benchmarks/gpu/run.sh has passed the whole test suite
_installed = importlib.util.find_spec("triton") is not None
# Triton reads the variable once, when its kernels are defined.
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def is_automatic() -> bool:
    """Whether ``backend="auto"`` takes the kernels for CUDA tensors: not before they have passed on a GPU."""
    return _installed and bool(TESTED_ON)


def obstacle(tensor: Tensor) -> str | None:
    """Why the kernels cannot run on ``tensor``, or None."""
    if not _installed:
        return "Triton is not installed (pip install triton)"
    if _interpreted and tensor.device.type in ("cpu", "cuda"):
        return None
    if tensor.device.type == "cuda":
        return "it has no kernel for torch.float64" if tensor.dtype == torch.float64 else None
    if tensor.device.type == "cpu":
        return "the tensors are on cpu; move them to a CUDA device, or set TRITON_INTERPRET=1 for Triton's interpreter"
    return f"the tensors are on {tensor.device}"
