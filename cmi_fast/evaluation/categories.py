"""Do the learned categories match known ones?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from cmi_fast.data.parquet import read_parquet
from cmi_fast.data.plays import UNREADABLE, one_line
from cmi_fast.errors import InputError

LEAST_ITEMS = 2  # below, any two assignments agree
SHUFFLES = 10
POPULARITY_CLASSES = 20


@dataclass(frozen=True)
class KnownCategories:
    """of: the category of each item [V], a place in ``names``, or -1 where it is not known."""

    of: NDArray[np.int64]
    names: list[str]


def read_item_categories(path: Path, item_ids: NDArray[Any]) -> KnownCategories:
    """The known categories of ``item_ids`` [V].

    The file is Parquet or CSV with columns ``item_id`` and ``category`` (integers or text), one row an item.

    Raises:
        InputError: the file cannot be read, a column is missing or of another type, or it knows too few of the items.
    """
    try:
        content = path.read_bytes()
        frame = read_parquet(content) if path.suffix == ".parquet" else pl.read_csv(content)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    for column in ("item_id", "category"):
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}, found {', '.join(frame.columns)}")
        if not (frame.schema[column].is_integer() or frame.schema[column] == pl.String):
            raise InputError(f"{path}: column {column!r}: expected integers or text, found {frame.schema[column]}")
    # As text, so that 7 in one file is "7" in the other.
    names = frame["category"].cast(pl.String).drop_nulls().unique().sort()
    known = frame.select(pl.col("item_id").cast(pl.String), pl.col("category").cast(pl.String).rank("dense") - 1)
    known = known.drop_nulls().unique("item_id", keep="first", maintain_order=True)
    wanted = pl.DataFrame({"item_id": item_ids}).with_columns(pl.col("item_id").cast(pl.String))
    categories = wanted.join(known, on="item_id", how="left", maintain_order="left")["category"]
    found = categories.cast(pl.Int64).fill_null(-1).to_numpy()
    if (found >= 0).sum() < LEAST_ITEMS:
        raise InputError(
            f"{path}: found {(found >= 0).sum()} items of the log's catalogue, expected {LEAST_ITEMS} or more"
        )
    return KnownCategories(found, names.to_list())


def category_agreement(
    assigned: NDArray[np.integer[Any]], known: NDArray[np.int64], popular: NDArray[np.int64]
) -> dict[str, float]:
    """Normalised mutual information of the ``assigned`` [V] and the ``known`` [V] categories (-1: not known).

    Args:
        popular: [V], all items in order of popularity.

    Returns:
        ``nmi`` in [0, 1] over the items with a known category; the mean over ten shuffles of the assignment, among all
        items (``nmi_shuffled``: what chance gives) and among items of similar popularity (``nmi_popularity``: what
        popularity alone explains); and ``items``, how many there are.
    """
    rank = np.empty(len(popular), dtype=np.int64)
    rank[popular] = np.arange(len(popular))
    learned, true, rank = assigned[known >= 0], known[known >= 0], rank[known >= 0]
    classes = np.empty(len(true), dtype=np.int64)
    classes[np.argsort(rank)] = np.arange(len(true)) * min(POPULARITY_CLASSES, len(true)) // len(true)
    return {
        "nmi": float(normalized_mutual_info_score(true, learned)),
        "nmi_shuffled": _shuffled_nmi(true, learned, np.zeros_like(classes)),
        "nmi_popularity": _shuffled_nmi(true, learned, classes),
        "items": len(true),
    }


def _shuffled_nmi(true: NDArray[np.int64], learned: NDArray[np.integer[Any]], classes: NDArray[np.int64]) -> float:
    """The mean over shuffles of ``learned`` within each class."""
    rng = np.random.default_rng(0)
    by_class = np.argsort(classes, kind="stable")
    scores = []
    for _ in range(SHUFFLES):
        shuffled = np.empty_like(learned)
        shuffled[by_class] = learned[np.lexsort((rng.random(len(classes)), classes))]
        scores.append(normalized_mutual_info_score(true, shuffled))
    return float(np.mean(scores))
