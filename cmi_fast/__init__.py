"""Fast, exact multi-interest recommendation: fused operators, drop-in layers, a thin recommender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cmi_fast import functional, nn
from cmi_fast._native import build_info

if TYPE_CHECKING:
    from cmi_fast.data.interactions import Interactions
    from cmi_fast.recommender import Recommender

__all__ = ["Interactions", "Recommender", "build_info", "functional", "nn"]


def __getattr__(name: str) -> Any:
    """What needs data-frame libraries loads when first used: the operators alone need torch and nothing else."""
    if name == "Interactions":
        from cmi_fast.data.interactions import Interactions

        return Interactions
    if name == "Recommender":
        from cmi_fast.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'cmi_fast' has no attribute {name!r}")
