"""An index and user vectors for a retrieval service, with the recall that the index reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.retrieval.top_k import top_k

RECALL_AT = 50
RECALL_USERS = 1000
EXACT_ITEMS = 20_000  # so few that nothing need be left out
POINTS_A_LIST = 39  # what faiss wants to train a list of an inverted file on


def load_faiss() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise InputError("--faiss: the package faiss is not installed; pip install faiss-cpu") from None
    return faiss


def build_index(items: Tensor, description: str | None = None) -> Any:
    """A trained faiss index of the rows of ``items`` [V, d] by inner product.

    Args:
        description: as ``faiss.index_factory`` takes it, such as ``"Flat"`` (exact) or ``"HNSW32"``; None: ``"Flat"``
            up to 20,000 items, beyond an inverted file of about 4 sqrt(V) lists, of which a search visits a sixteenth.

    Raises:
        InputError: faiss is not installed, or refuses the description or the number of items.
    """
    faiss = load_faiss()
    count, d = items.shape
    vectors = np.ascontiguousarray(items.numpy(), dtype=np.float32)
    lists = max(1, min(round(4 * math.sqrt(count)), count // POINTS_A_LIST))
    try:
        usual = "Flat" if count <= EXACT_ITEMS else f"IVF{lists},Flat"
        index = faiss.index_factory(d, description or usual, faiss.METRIC_INNER_PRODUCT)
        if description is None and count > EXACT_ITEMS:
            index.nprobe = max(1, lists // 16)
        index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--index {description}: faiss cannot build it for {count:,} items: {reason}") from None
    return index


def search_index(index: Any, interests: Tensor, k: int) -> NDArray[np.int64]:
    """The rows [U, k] that the index finds for ``interests`` [U, m, d], by falling score of an item's best interest;
    -1 where it finds fewer."""
    users = len(interests)
    queries = np.ascontiguousarray(interests.flatten(0, 1).numpy(), dtype=np.float32)
    scores, rows = index.search(queries, k)
    scores, rows = scores.reshape(users, -1), rows.reshape(users, -1)
    found = np.full((users, k), -1)
    for user, order in enumerate(np.argsort(-scores, axis=1, kind="stable")):
        listed = rows[user, order]
        _, first = np.unique(listed, return_index=True)
        distinct = listed[np.sort(first)]
        distinct = distinct[distinct >= 0][:k]
        found[user, : len(distinct)] = distinct
    return found


def index_recall(index: Any, interests: Tensor, items: Tensor, k: int) -> float:
    """The share of the exact ``k`` best items that the index finds, averaged over users."""
    k = min(k, len(items))
    _, exact = top_k(interests, items, k)
    found = search_index(index, interests, k)
    return float(np.mean([np.isin(rows, of_index).mean() for rows, of_index in zip(exact.numpy(), found, strict=True)]))


def export_index(
    folder: Path, items: Tensor, blocks: Iterable[Tensor], shape: tuple[int, int, int], description: str | None = None
) -> dict[str, Any]:
    """Write ``items.faiss``, ``user_vectors.npy`` and ``export.json`` into ``folder``.

    Args:
        items: [V, d] float32 on the CPU; the index returns their rows.
        blocks: the users' interests [n, m, d], block after block.
        shape: [U, m, d] of all of them.
        description: see :func:`build_index`.

    Returns:
        What ``export.json`` holds: the index, the shapes, and the recall of the index against exact retrieval, without
        exclusions, for the first users (None where there is no user).
    """
    index = build_index(items, description)
    folder.mkdir(parents=True, exist_ok=True)
    sample = torch.empty(0, *shape[1:])
    with atomic_path(folder / "user_vectors.npy") as path:
        vectors = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        first = 0
        for block in blocks:
            vectors[first : first + len(block)] = block.numpy()
            sample = torch.cat((sample, block[: RECALL_USERS - len(sample)].float()))
            first += len(block)
        vectors.flush()
    with atomic_path(folder / "items.faiss") as path:
        load_faiss().write_index(index, str(path))
    summary = {
        "index": description
        or ("Flat" if len(items) <= EXACT_ITEMS else f"IVF{index.nlist},Flat, nprobe {index.nprobe}"),
        "items": list(items.shape),
        "user_vectors": list(shape),
        "score": "the largest inner product of a user's vectors with the item's",
        f"recall@{RECALL_AT}": index_recall(index, sample, items, RECALL_AT) if len(sample) else None,
        "recall_users": len(sample),
    }
    with atomic_path(folder / "export.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
