"""Fast, exact multi-interest recommendation: fused operators, drop-in layers, a thin recommender."""

from cmi_fast import functional, nn
from cmi_fast._native import build_info

__all__ = ["build_info", "functional", "nn"]
