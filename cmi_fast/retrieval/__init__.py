"""Exact retrieval of items for sets of interest vectors."""

from __future__ import annotations

from cmi_fast.retrieval.top_k import top_k

__all__ = ["top_k"]
