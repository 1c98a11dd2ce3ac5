"""The distinct items of a batch, and the batch in terms of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cmi_fast.data.compiled import compiled
from cmi_fast.data.sampler import Batch


def distinct_items(batch: Batch, num_items: int) -> tuple[NDArray[np.int64], Batch]:
    """The rows [R], of ``num_items``, that ``batch`` reads, ascending, and the batch with their places 0 ... R - 1.

    So all uses of the item table in a step are uses of one small copy, and the table gets one gradient.
    """
    if compiled is not None:
        rows, *places = compiled.distinct(batch.history, batch.lengths, batch.positives, batch.negatives, num_items)
    else:
        rows, *places = distinct(batch.history, batch.lengths, batch.positives, batch.negatives)
    return rows, replace(batch, history=places[0], positives=places[1], negatives=places[2])


def distinct(
    history: NDArray[np.int64], lengths: NDArray[np.int64], positives: NDArray[np.int64], negatives: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """What ``csrc/sampler/distinct.h`` finds: rows, and the places of ``history`` (0 in the padding) and the others."""
    inside = np.arange(history.shape[1]) < lengths[:, None]
    rows, places = np.unique(np.concatenate([history[inside], positives, negatives]), return_inverse=True)
    of_history = np.zeros_like(history)
    of_history[inside], of_positives, of_negatives = np.split(places, np.cumsum([inside.sum(), len(positives)]))
    return rows, of_history, of_positives, of_negatives
