"""The compiled sampler, ``csrc/sampler``; None in a pure-Python install."""

__all__ = ["compiled"]

try:
    from cmi_fast import _sampler as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
