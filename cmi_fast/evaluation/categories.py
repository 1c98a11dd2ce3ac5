"""Do the learned categories match known ones?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from cmi_fast.data.plays import UNREADABLE, one_line
from cmi_fast.errors import InputError

LEAST_ITEMS = 2  # below, any two assignments agree


def read_item_categories(path: Path, item_ids: NDArray[Any]) -> NDArray[np.int64]:
    """The known category of each of ``item_ids`` [V] as a number, -1 where the file has none.

    The file is Parquet or CSV with columns ``item_id`` and ``category`` (integers or text), one row an item.

    Raises:
        InputError: the file cannot be read, a column is missing or of another type, or it knows too few of the items.
    """
    try:
        content = path.read_bytes()
        frame = pl.read_parquet(content) if path.suffix == ".parquet" else pl.read_csv(content)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    for column in ("item_id", "category"):
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}, found {', '.join(frame.columns)}")
        if not (frame.schema[column].is_integer() or frame.schema[column] == pl.String):
            raise InputError(f"{path}: column {column!r}: expected integers or text, found {frame.schema[column]}")
    # As text, so that 7 in one file is "7" in the other.
    known = frame.select(pl.col("item_id").cast(pl.String), pl.col("category").cast(pl.String).rank("dense") - 1)
    known = known.drop_nulls().unique("item_id", keep="first", maintain_order=True)
    wanted = pl.DataFrame({"item_id": item_ids}).with_columns(pl.col("item_id").cast(pl.String))
    categories = wanted.join(known, on="item_id", how="left", maintain_order="left")["category"]
    found = categories.cast(pl.Int64).fill_null(-1).to_numpy()
    if (found >= 0).sum() < LEAST_ITEMS:
        raise InputError(
            f"{path}: found {(found >= 0).sum()} items of the log's catalogue, expected {LEAST_ITEMS} or more"
        )
    return found


def category_agreement(assigned: NDArray[np.integer[Any]], known: NDArray[np.int64]) -> dict[str, float]:
    """Normalised mutual information of the ``assigned`` [V] and the ``known`` [V] categories (-1: not known).

    Returns:
        ``nmi`` in [0, 1] over the items with a known category, ``nmi_shuffled`` of the same assignment shuffled (what
        chance gives), and ``items``, how many there are.
    """
    learned, true = assigned[known >= 0], known[known >= 0]
    shuffled = np.random.default_rng(0).permutation(learned)
    return {
        "nmi": float(normalized_mutual_info_score(true, learned)),
        "nmi_shuffled": float(normalized_mutual_info_score(true, shuffled)),
        "items": len(true),
    }
