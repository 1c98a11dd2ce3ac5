"""Do the learned categories match known ones?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score

from cmi_fast.errors import InputError


def read_item_categories(path: Path) -> pl.DataFrame:
    """A Parquet or CSV file with columns ``item_id`` and ``category``, one row an item.

    Raises:
        InputError: the file cannot be read, or a column is missing.
    """
    read = pl.read_parquet if path.suffix == ".parquet" else pl.read_csv
    try:
        frame = read(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    for column in ("item_id", "category"):
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}, found {', '.join(frame.columns)}")
    return frame.select("item_id", "category").drop_nulls().unique("item_id", keep="first", maintain_order=True)


def category_agreement(
    item_ids: NDArray[Any], assigned: NDArray[np.integer[Any]], known: pl.DataFrame
) -> dict[str, float]:
    """Normalised mutual information of the ``assigned`` [n] and the known categories of ``item_ids`` [n].

    Returns:
        ``nmi`` in [0, 1] over the items with a known category, ``nmi_shuffled`` of the same assignment shuffled (what
        chance gives), and ``items``, how many there are.
    """
    assigned_frame = pl.DataFrame({"item_id": item_ids, "assigned": assigned})
    if assigned_frame.schema["item_id"] != known.schema["item_id"]:
        known = known.with_columns(pl.col("item_id").cast(assigned_frame.schema["item_id"], strict=False))
    both = assigned_frame.join(known, on="item_id", how="inner", maintain_order="left")
    learned, true = both["assigned"].to_numpy(), both["category"].to_numpy()
    shuffled = np.random.default_rng(0).permutation(learned)
    return {
        "nmi": float(normalized_mutual_info_score(true, learned)),
        "nmi_shuffled": float(normalized_mutual_info_score(true, shuffled)),
        "items": len(both),
    }
