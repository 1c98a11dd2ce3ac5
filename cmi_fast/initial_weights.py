"""Weights to begin training with: those of an earlier model, or item vectors from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from cmi_fast.data.ids import as_ids, rows_of
from cmi_fast.errors import InputError
from cmi_fast.ranking import Ranker


@torch.no_grad()
def copy_weights(old: Ranker, new: Ranker) -> None:
    """Every parameter of ``old``; the items that only ``new`` knows keep their initial vectors."""
    weights = old.model.state_dict()
    items = new.model.items.detach().clone()
    rows = torch.from_numpy(old.encode(new.item_ids)).to(items.device)
    items[rows >= 0] = weights["items"].to(items.device)[rows[rows >= 0]]
    new.model.load_state_dict({**weights, "items": items})


@torch.no_grad()
def set_item_vectors(ranker: Ranker, vectors: Mapping[Any, ArrayLike], must_be_all: bool) -> None:
    """Give the items of ``vectors`` these directions, at the length that initial rows have."""
    table = ranker.model.items
    dim = table.shape[1]
    try:
        matrix = np.stack([np.asarray(vector, dtype=np.float32) for vector in vectors.values()])
    except ValueError as error:
        raise InputError(f"item_vectors: expected vectors of {dim} numbers ({error})") from None
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise InputError(
            f"item_vectors: expected vectors of {dim} numbers (config.dim), found {list(matrix.shape[1:])}"
        )
    if not np.isfinite(matrix).all():
        raise InputError("item_vectors: found values that are no finite numbers")
    rows = rows_of(ranker.item_ids, as_ids(vectors, "item_vectors"), "item")
    missing = ranker.item_ids[rows < 0]
    if must_be_all and len(missing):
        raise InputError(
            f"item_vectors: found none for {len(missing):,} items to freeze, such as {missing.tolist()[0]!r}"
        )
    if len(missing) == len(rows):
        raise InputError("item_vectors: found none for the items of the log")
    given = torch.from_numpy(matrix[rows[rows >= 0]])
    # Rows are normalised where they are used; their length sets how far one step of Adam turns them.
    table[torch.from_numpy(rows >= 0)] = (F.normalize(given, dim=-1) * 3**-0.5).to(table.device)
