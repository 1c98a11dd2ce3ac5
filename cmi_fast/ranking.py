"""A trained model with the item ids it knows, on rows: rank, evaluate, save, load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cmi_fast.data import Histories
from cmi_fast.data.files import atomic_path, write_frame
from cmi_fast.data.ids import rows_of
from cmi_fast.data.parquet import read_parquet
from cmi_fast.data.plays import UNREADABLE, one_line
from cmi_fast.errors import InputError
from cmi_fast.evaluation import CUTOFFS, EvaluationTask
from cmi_fast.models import MultiInterestModel
from cmi_fast.retrieval import top_k
from cmi_fast.training.config import Config, load_config
from cmi_fast.training.trainer import Progress, build_model

USERS_AT_ONCE = 1024


@dataclass(frozen=True)
class Ranker:
    """A model and what its rows mean: the catalogue, the items with a training play.

    Shapes: item_ids [V] (int64, or str objects), the id of each row of the item table; popular [V], all rows in order
    of recent popularity, for users without history; recent [V], the plays of each row on the last training days.

    To the model's scores comes what is in fashion: ``config.recent_weight`` times log(1 + recent).
    """

    model: MultiInterestModel
    config: Config
    item_ids: NDArray[Any]
    popular: NDArray[np.int64]
    recent: NDArray[np.int64]

    def evaluate(
        self, task: EvaluationTask, rows: NDArray[np.int64], progress: Progress | None = None
    ) -> dict[str, float]:
        """Metrics of ``task``; ``rows`` is the model's row of each item row of the task's log (:meth:`encode`)."""
        return task.evaluate(self.rank_task(task, rows, progress))

    def rank_task(
        self, task: EvaluationTask, rows: NDArray[np.int64], progress: Progress | None = None
    ) -> NDArray[np.int64]:
        """The task's item rows [E, 50] for each of its users, best first, -1 where a list has ended."""
        shared = (rows >= 0) & task.catalogue
        candidates = np.zeros(len(self.item_ids), dtype=bool)
        candidates[rows[shared]] = True
        _, ranked = self.rank(translate(task.history, rows), max(CUTOFFS), candidates, progress=progress)
        back = np.full(len(self.item_ids) + 1, -1)  # its last entry stands for the -1 of an ended list
        back[rows[shared]] = np.flatnonzero(shared)
        ranked_items: NDArray[np.int64] = back[ranked]
        return ranked_items

    @torch.no_grad()
    def interests(self, histories: Histories) -> torch.Tensor:
        """Retrieval vectors of lists of item rows, the most recent last: [U, m, d] as the model has them, or with
        ``recent_weight`` [U, m, d + 1], a 1 for what :meth:`item_vectors` has there."""
        vectors: torch.Tensor = self.model(*self.padded(histories))
        return F.pad(vectors, (0, 1), value=1.0) if self.config.recent_weight else vectors

    @torch.no_grad()
    def item_vectors(self, rows: NDArray[np.int64] | None = None) -> torch.Tensor:
        """The vectors of ``rows``, of all V without: an item's score is its largest inner product with an interest."""
        of = None if rows is None else torch.from_numpy(rows).to(self.model.items.device)
        vectors = self.model.item_vectors(of)
        if not self.config.recent_weight:
            return vectors
        term = self.config.recent_weight * np.log1p(self.recent if rows is None else self.recent[rows])
        return torch.cat([vectors, torch.from_numpy(term).to(vectors)[..., None]], dim=-1)

    def padded(self, histories: Histories) -> tuple[torch.Tensor, torch.Tensor]:
        """What models take: the last items of each list as rows of a matrix [U, L], and their number [U]."""
        recent = histories.last(self.config.max_history)
        lengths = torch.from_numpy(recent.lengths)
        history = torch.zeros(len(recent), max(1, int(recent.lengths.max(initial=0))), dtype=torch.int64)
        history[torch.arange(history.shape[1]) < lengths[:, None]] = torch.from_numpy(recent.items).long()
        device = self.model.items.device
        return history.to(device), lengths.to(device)

    @torch.no_grad()
    def rank(
        self,
        histories: Histories,
        k: int,
        candidates: NDArray[np.bool_] | None = None,
        filter_viewed: bool = True,
        progress: Progress | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best items for each history, without those in it unless ``filter_viewed`` is False.

        ``candidates`` [V] bool, None: all. Returns scores and item rows, both [U, k], best first; -inf and -1 where
        fewer than k remain. Users without history get recently popular items, with scores of 0.
        """
        rows = np.arange(len(self.item_ids)) if candidates is None else np.flatnonzero(candidates)
        place = np.full(len(self.item_ids), -1)
        place[rows] = np.arange(len(rows))
        device = self.model.items.device
        vectors = self.item_vectors(rows)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        found = np.full((len(histories), k), -1)
        for first in range(0, len(histories), USERS_AT_ONCE):
            users = np.arange(first, min(first + USERS_AT_ONCE, len(histories)))
            block = histories.select(users)
            offsets = items = None
            if filter_viewed:
                seen = translate(block, place)
                offsets, items = (torch.from_numpy(x).to(device) for x in (seen.offsets, seen.items))
            values, columns = top_k(self.interests(block), vectors, k, exclude_offsets=offsets, exclude_ids=items)
            scores[users], found[users] = values.cpu().numpy(), np.append(rows, -1)[columns.cpu().numpy()]
            if progress is not None:
                progress.users(int(users[-1]) + 1, len(histories))
        empty = histories.lengths == 0
        popular = self.popular[place[self.popular] >= 0][:k]
        scores[empty], found[empty] = -np.inf, -1
        scores[empty, : len(popular)], found[empty, : len(popular)] = 0.0, popular
        return scores, found

    def recommend(
        self,
        user_ids: NDArray[Any],
        histories: Histories,
        k: int,
        filter_viewed: bool = True,
        progress: Progress | None = None,
    ) -> pl.DataFrame:
        """The k best items for each user, best first: ``user_id, item_id, score, rank`` (from 1); see :meth:`rank`."""
        k = min(k, len(self.item_ids))
        scores, found = self.rank(histories, k, filter_viewed=filter_viewed, progress=progress)
        listed = found >= 0
        return pl.DataFrame(
            {
                "user_id": np.repeat(user_ids, listed.sum(1)),
                "item_id": self.item_ids[found[listed]],
                "score": scores[listed],
                "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.int32), found.shape)[listed],
            }
        )

    def encode(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each item id; -1 for ids the model does not know (see :func:`rows_of`)."""
        return rows_of(ids, self.item_ids, "item")

    def save(self, run: Path, weights: bool = True) -> None:
        """Write config.toml, items.parquet and model.safetensors into the folder ``run``, each by atomic rename.

        The weights go first and come last: without them, what an interruption leaves is no trained model. Without
        ``weights`` the folder is left to wait for :meth:`save_weights`.
        """
        (run / "model.safetensors").unlink(missing_ok=True)
        with atomic_path(run / "config.toml") as path:
            path.write_text(self.config.to_toml(), encoding="utf-8")
        with atomic_path(run / "items.parquet") as path:
            rank = np.empty(len(self.item_ids), dtype=np.int64)
            rank[self.popular] = np.arange(1, len(self.popular) + 1)
            frame = pl.DataFrame({"item_id": self.item_ids, "popularity_rank": rank, "recent_plays": self.recent})
            write_frame(frame, path)
        if weights:
            self.save_weights(run)

    def save_weights(self, run: Path) -> None:
        """Replace model.safetensors alone, at once."""
        with atomic_path(run / "model.safetensors") as path:
            path.write_bytes(safetensors.torch.save(self.model.state_dict()))  # save_file hides it from other users

    def restore_weights(self, run: Path) -> None:
        """Give the model the weights that :meth:`save_weights` wrote."""
        _load_weights(self.model, run / "model.safetensors")

    @classmethod
    def load(cls, run: Path) -> Ranker:
        """Read what :meth:`save` wrote. Raises InputError where a file is missing or is not what it wrote."""
        if not run.is_dir():
            raise InputError(f"{run}: expected the folder of a trained model, found none")
        config = load_config(run / "config.toml")
        ids, rank, recent = _read_items(run / "items.parquet")
        model = build_model(config, len(ids))
        _load_weights(model, run / "model.safetensors")
        return cls(model.eval(), config, ids, np.argsort(rank), recent)


def _read_items(path: Path) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """The ids, popularity ranks and recent plays that ``save`` wrote."""
    try:
        items = read_parquet(path.read_bytes())
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    expected = {"item_id": (pl.Int64, pl.String), "popularity_rank": (pl.Int64,)}
    for name, types in expected.items():
        if name not in items.columns or items.schema[name] not in types or items[name].is_duplicated().any():
            raise InputError(f"{path}: expected a column {name!r} of distinct values, found {items.schema}")
        if items[name].has_nulls():
            raise InputError(f"{path}: column {name!r}: found nulls")
    if "recent_plays" not in items.columns:  # of an earlier version, which did not rank by them
        items = items.with_columns(recent_plays=pl.lit(0, pl.Int64))
    recent = items["recent_plays"]
    if recent.dtype != pl.Int64 or recent.has_nulls() or (recent < 0).any():
        raise InputError(f"{path}: column 'recent_plays': expected counts, found {items.schema}")
    return items["item_id"].to_numpy(), items["popularity_rank"].to_numpy(), recent.to_numpy()


def _load_weights(model: MultiInterestModel, path: Path) -> None:
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: no complete trained model: the file is missing, as where training was interrupted before its "
            f"first epoch ended (cmi-fast train --resume {path.parent} continues it)"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: no complete trained model: {one_line(error)}") from None
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    if expected != found:
        raise InputError(
            f"{path}: no complete trained model: found {found}, config.toml and items.parquet say {expected}"
        )
    if not all(value.isfinite().all() for value in weights.values()):
        raise InputError(f"{path}: found values that are no finite numbers")
    model.load_state_dict(weights)


def write_users(path: Path, user_ids: NDArray[Any], histories: Histories) -> None:
    """Write users and their histories (model rows): ``user_id, history``."""
    items = pl.DataFrame({"user": histories.users, "history": histories.items})
    lists = items.group_by("user", maintain_order=True).agg("history")
    users = pl.DataFrame({"user_id": user_ids}).with_row_index("user").with_columns(pl.col("user").cast(pl.Int64))
    frame = users.join(lists, on="user", how="left", maintain_order="left").select("user_id", "history")
    with atomic_path(path) as temporary:
        write_frame(frame, temporary)


def read_users(path: Path, num_items: int) -> tuple[NDArray[Any], Histories]:
    """What :func:`write_users` wrote. Raises InputError where it is not that."""
    try:
        frame = read_parquet(path.read_bytes())
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    schemas = [{"user_id": dtype, "history": pl.List(pl.Int32)} for dtype in (pl.Int64, pl.String)]
    if dict(frame.schema) not in schemas:
        raise InputError(f"{path}: expected columns user_id and history, found {frame.schema}")
    counts = frame["history"].list.len().fill_null(0)
    lengths = counts.to_numpy()
    items = frame["history"].filter(counts > 0).explode()
    if items.has_nulls() or frame["user_id"].has_nulls() or not items.is_between(0, num_items - 1).all():
        raise InputError(f"{path}: expected ids, and item rows from 0 to {num_items - 1}, found others")
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return frame["user_id"].to_numpy(), Histories(offsets, items.to_numpy())


def translate(histories: Histories, rows: NDArray[np.int64]) -> Histories:
    """The lists with ``rows[item]`` in place of each item, without those whose row is -1."""
    translated = rows[histories.items]
    known = translated >= 0
    return Histories.group(histories.users[known], translated[known], len(histories))
