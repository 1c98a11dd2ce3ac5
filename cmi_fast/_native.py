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


available = _load()


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
    }
