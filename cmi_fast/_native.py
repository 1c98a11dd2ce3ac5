"""The compiled operators: loading them, and choosing the ISA level they run at."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LEVEL_VARIABLE = "CMI_FAST_ISA"


def _load() -> bool:
    library = Path(__file__).with_name("libcmi_fast.so")
    if not library.exists():
        return False
    torch.ops.load_library(library)
    return True


def _load_cuda() -> str | None:
    """Load the CUDA kernels, a library of their own; what stands in the way, or None."""
    if not available:
        return "the package was installed without compiled operators"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    library = Path(__file__).with_name("libcmi_fast_cuda.so")
    if not library.exists():
        return "the package was installed without CUDA kernels, which takes nvcc"
    try:
        torch.ops.load_library(library)
    except OSError as error:  # nobody has asked for them yet
        return f"the CUDA kernels cannot be loaded: {error}"
    return None


available = _load()
cuda_obstacle = _load_cuda()


def isa_levels() -> list[str]:
    """The levels this CPU runs, from the lowest; empty without compiled operators."""
    return torch.ops.cmi_fast.supported_isa_levels().split(",") if available else []


def set_isa_level(name: str) -> None:
    """Run the compiled CPU operators at this level from now on (for tests and benchmarks).

    Raises:
        ValueError: the level is unknown, or this CPU cannot run it.
    """
    if name not in isa_levels():
        supported = ", ".join(isa_levels()) or "none, as the package was installed without compiled operators"
        raise ValueError(f"ISA level {name!r}: expected one this CPU can run ({supported})")
    torch.ops.cmi_fast.set_isa_level(name)


def _apply_environment() -> str | None:
    """Set the level that the environment names; what is wrong with it, or None."""
    if not available or not os.environ.get(LEVEL_VARIABLE):
        return None
    try:
        set_isa_level(os.environ[LEVEL_VARIABLE])
    except ValueError as error:
        return f"{LEVEL_VARIABLE}: {error}"
    return None


# Raised by the first call that would run compiled code, as an import is no place for a traceback.
environment_error = _apply_environment()


def build_info() -> dict[str, Any]:
    """What is installed and what runs: versions, compiled operators, ISA levels, threads."""
    return {
        "cmi_fast": metadata.version("cmi_fast"),
        "torch": torch.__version__,
        "compiled": available,
        "isa": torch.ops.cmi_fast.isa_level() if available else None,
        "isa_supported": isa_levels(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_kernels": cuda_obstacle is None,
    }
