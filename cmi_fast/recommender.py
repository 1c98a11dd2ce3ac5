"""A trained model with the ids it knows: rank, recommend, save, load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from cmi_fast.data import Histories
from cmi_fast.data.files import atomic_path
from cmi_fast.errors import InputError
from cmi_fast.evaluation import CUTOFFS, EvaluationTask
from cmi_fast.models.cmi import CMI
from cmi_fast.retrieval import top_k
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import build_model

USERS_AT_ONCE = 1024


@dataclass(frozen=True)
class Recommender:
    """A model and what its rows mean.

    Shapes: item_ids [V] (int64, or str objects), the id of each row of the item table; catalogue [V] bool, the items
    that may be recommended; popular [P] item rows in order of recent popularity, for users without history.
    """

    model: CMI
    config: Config
    item_ids: NDArray[Any]
    catalogue: NDArray[np.bool_]
    popular: NDArray[np.int64]

    def evaluate(self, task: EvaluationTask, rows: NDArray[np.int64]) -> dict[str, float]:
        """Metrics of ``task``; ``rows`` is the model's row of each item row of the task's log (:meth:`encode`)."""
        _, ranked = self.recommend(translate(task.history, rows), max(CUTOFFS))
        back = np.full(len(self.item_ids) + 1, -1)  # its last entry stands for the -1 of an ended list
        back[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return task.evaluate(back[ranked])

    @torch.no_grad()
    def interests(self, histories: Histories) -> torch.Tensor:
        """Retrieval vectors [U, m, d] of any lists of item rows, most recent last (zeros for empty ones)."""
        blocks = []
        for users in _blocks(len(histories)):
            recent = histories.select(users).last(self.config.max_history)
            lengths = torch.from_numpy(recent.lengths)
            history = torch.zeros(len(recent), max(1, int(lengths.max())), dtype=torch.int64)
            history[torch.arange(history.shape[1]) < lengths[:, None]] = torch.from_numpy(recent.items).long()
            blocks.append(self.model(history, lengths))
        return torch.cat(blocks) if blocks else torch.zeros(0, self.config.interests, self.config.dim)

    @torch.no_grad()
    def recommend(self, histories: Histories, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best items for each history, without those in it.

        Returns scores and item rows, both [U, k], best first; -inf and -1 where fewer than k remain. Users without
        history get recently popular items, with scores of 0.
        """
        rows = np.flatnonzero(self.catalogue)
        place = np.full(len(self.catalogue), -1)
        place[rows] = np.arange(len(rows))
        seen = translate(histories, place)
        scores, columns = top_k(
            self.interests(histories),
            self.model.item_vectors()[torch.from_numpy(rows)],
            k,
            exclude_offsets=torch.from_numpy(seen.offsets),
            exclude_ids=torch.from_numpy(seen.items),
        )
        values, found = scores.numpy(), np.append(rows, -1)[columns.numpy()]
        empty = histories.lengths == 0
        popular = np.append(self.popular, np.full(k, -1))[:k]
        found[empty] = popular
        values[empty] = np.where(popular >= 0, 0.0, -np.inf)
        return values, found

    def encode(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each id; -1 for ids the model does not know."""
        known = pl.DataFrame({"id": self.item_ids, "row": np.arange(len(self.item_ids))})
        joined = pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left")
        return joined["row"].fill_null(-1).to_numpy()

    def save(self, run: Path) -> None:
        """Write config.toml, model.safetensors and items.parquet into the folder ``run``, each by atomic rename."""
        with atomic_path(run / "config.toml") as path:
            path.write_text(self.config.to_toml(), encoding="utf-8")
        with atomic_path(run / "items.parquet") as path:
            rank = np.zeros(len(self.item_ids), dtype=np.int64)
            rank[self.popular] = np.arange(1, len(self.popular) + 1)
            columns = {"item_id": self.item_ids, "in_catalogue": self.catalogue, "popularity_rank": rank}
            pl.DataFrame(columns).write_parquet(path)
        with atomic_path(run / "model.safetensors") as path:
            path.write_bytes(safetensors.torch.save(self.model.state_dict()))  # save_file hides it from other users

    @classmethod
    def load(cls, run: Path) -> Recommender:
        """Read what :meth:`save` wrote. Raises InputError where a file is missing or cannot be read."""
        if not run.is_dir():
            raise InputError(f"{run}: expected the folder of a trained model, found none")
        config = load_config(run / "config.toml")
        try:
            items = pl.read_parquet(run / "items.parquet")
            model = build_model(config, len(items))
            model.load_state_dict(safetensors.torch.load_file(run / "model.safetensors"))
        except (OSError, pl.exceptions.PolarsError, safetensors.SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] or type(error).__name__
            raise InputError(f"{run}: no complete trained model ({reason})") from None
        rank = items["popularity_rank"].to_numpy()
        popular = np.flatnonzero(rank)[np.argsort(rank[rank > 0])]
        return cls(model.eval(), config, items["item_id"].to_numpy(), items["in_catalogue"].to_numpy(), popular)


def translate(histories: Histories, rows: NDArray[np.int64]) -> Histories:
    """The lists with ``rows[item]`` in place of each item, without those whose row is -1."""
    translated = rows[histories.items]
    known = translated >= 0
    return Histories.group(histories.users[known], translated[known], len(histories))


def _blocks(count: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, count, USERS_AT_ONCE):
        yield np.arange(first, min(first + USERS_AT_ONCE, count))
