"""The Python interface: fit a log, recommend for its users or for any list of items, save, load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray

from cmi_fast.data.histories import Histories
from cmi_fast.data.ids import as_ids, rows_of
from cmi_fast.data.interactions import Interactions
from cmi_fast.errors import InputError
from cmi_fast.evaluation.task import RECENT_DAYS, EvaluationTask, order_by_plays
from cmi_fast.initial_weights import copy_weights, set_item_vectors
from cmi_fast.ranking import Ranker, read_users, translate, write_users
from cmi_fast.training.config import Config, make_config
from cmi_fast.training.trainer import InMemory, Progress, build_model, candidate_frequency, parse_device, train

ItemLists = Sequence[Iterable[Any]] | Mapping[Any, Iterable[Any]]


class Recommender:
    """CMI on a log of plays, with the conventions of RecTools and implicit.

    Args:
        config: all settings; or give single ones by keyword, such as ``epochs=5, interests=4`` (:class:`Config`).
        device: "cpu", "cuda" or "cuda:N".
    """

    def __init__(self, config: Config | None = None, *, device: str = "cpu", **settings: Any) -> None:
        if config is not None and settings:
            raise TypeError(f"config must be given alone, got {', '.join(settings)} beside it")
        self.config = make_config(**settings) if config is None else config
        self._device = parse_device(device)
        self._ranker: Ranker | None = None
        self._user_ids: NDArray[Any] = np.empty(0, dtype=np.int64)
        self._histories = Histories(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32))

    @property
    def user_ids(self) -> NDArray[Any]:
        """The users whose histories are known."""
        return self._user_ids

    @property
    def item_ids(self) -> NDArray[Any]:
        """The items that can be recommended: those with a play that was trained on."""
        return self._trained().item_ids

    def fit(
        self,
        interactions: Interactions,
        valid: Interactions | None = None,
        *,
        item_vectors: Mapping[Any, ArrayLike] | None = None,
        freeze_items: bool = False,
        warm_start: bool = False,
        progress: Progress | None = None,
    ) -> Recommender:
        """Train on all plays of ``interactions``, which with those of ``valid`` become the users' histories.

        Args:
            valid: later plays. The epoch with the best Recall@50 on them is kept, and training stops when
                ``config.patience`` epochs brought no better one. Without them every epoch is run.
            item_vectors: a vector of ``config.dim`` numbers by item id, to begin with; only the direction counts.
            freeze_items: leave the item vectors as they are given; every item must have one.
            warm_start: begin with the present weights, of the items known so far, instead of anew: for a new day.

        Raises:
            InputError: the plays cannot be trained on, or the vectors do not fit.
        """
        if freeze_items and item_vectors is None and not warm_start:
            raise InputError("freeze_items: found no item_vectors to freeze")
        ranker, plays = self._start(interactions)
        model = ranker.model
        if warm_start:
            copy_weights(self._trained(), ranker)
        if item_vectors is not None:
            set_item_vectors(ranker, item_vectors, must_be_all=freeze_items)
        model.items.requires_grad_(not freeze_items)
        users, histories = interactions.user_ids, plays
        task = None
        if valid is not None:
            users, histories = _add_users(users, histories, valid.user_ids)
            task = _task(ranker, users, histories, valid)
        train(
            model,
            plays,
            self.config,
            evaluate=lambda: {} if task is None else ranker.evaluate(*task),
            keeper=InMemory(model),
            progress=progress or Progress(),
        )
        model.items.requires_grad_(True)
        model.eval()
        self._ranker, self._user_ids = ranker, users
        self._histories = histories if valid is None else _extend(ranker, users, histories, valid)
        return self

    def evaluate(self, plays: Interactions) -> dict[str, float]:
        """Metrics of the lists for later ``plays``: Recall, HitRate, NDCG and MRR at 10, 20 and 50, and coverage.

        The policy is that of ``cmi-fast evaluate``: all users with plays, whose distinct items are the targets.
        """
        ranker = self._trained()
        users, histories = _add_users(self._user_ids, self._histories, plays.user_ids)
        return ranker.evaluate(*_task(ranker, users, histories, plays))

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        k: int = 10,
        *,
        filter_viewed: bool = True,
        unknown: Literal["raise", "skip"] = "raise",
    ) -> pl.DataFrame:
        """The k best items for each of ``users`` (None: all): a frame ``user_id, item_id, score, rank``.

        Args:
            filter_viewed: leave out the items of a user's history.
            unknown: what to do with users that were not in the log: an error that names the first, or skip them.

        Raises:
            InputError: unknown users. TypeError, ValueError: an argument of wrong type or range.
        """
        ranker = self._trained()
        _check_k(k)
        ids, rows = self._find(users, unknown)
        return ranker.recommend(ids, self._histories.select(rows), k, filter_viewed)

    def recommend_for(self, histories: ItemLists, k: int = 10, *, filter_viewed: bool = True) -> pl.DataFrame:
        """As :meth:`recommend`, for lists of item ids, the most recent last; items not known are left out of them.

        ``histories`` is a list of lists, whose ``user_id`` is their position, or a mapping from ``user_id`` to list.
        """
        ranker = self._trained()
        _check_k(k)
        names: Iterable[Any] = histories.keys() if isinstance(histories, Mapping) else range(len(histories))
        return ranker.recommend(as_ids(names, "histories"), _encode_lists(ranker, histories), k, filter_viewed)

    def interests(self, users: Iterable[Any] | None = None, *, histories: ItemLists | None = None) -> torch.Tensor:
        """Retrieval vectors [U, m, d] of ``users`` (None: all), or of ``histories`` as in :meth:`recommend_for`.

        d is ``dim``, and one more for each of ``share_weight`` and ``recent_weight`` that is not 0. The score of an
        item is its largest inner product with one of them (:meth:`item_vectors`).
        """
        ranker = self._trained()
        if histories is None:
            return ranker.interests(self._histories.select(self._find(users, "raise")[1]))
        if users is not None:
            raise TypeError("interests takes users or histories, got both")
        return ranker.interests(_encode_lists(ranker, histories))

    def item_vectors(self) -> torch.Tensor:
        """Unit vectors [V, d] of ``item_ids``, followed by what ``share_weight`` and ``recent_weight`` add."""
        return self._trained().item_vectors()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model and the users' histories into ``folder``, which is created; :meth:`load` reads it.

        It holds safetensors, Parquet and TOML: loading it executes nothing.
        """
        ranker, folder = self._trained(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_users(folder / "users.parquet", self._user_ids, self._histories)
        ranker.save(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str = "cpu") -> Recommender:
        """What :meth:`save`, or ``cmi-fast train``, wrote. Raises InputError where a file is missing or damaged."""
        ranker = Ranker.load(Path(folder))
        recommender = cls(ranker.config, device=device)
        ranker.model.to(recommender._device)
        recommender._ranker = ranker
        recommender._user_ids, recommender._histories = read_users(Path(folder) / "users.parquet", len(ranker.item_ids))
        return recommender

    def _trained(self) -> Ranker:
        if self._ranker is None:
            raise InputError("the recommender is not fitted: call fit, or load one")
        return self._ranker

    def _start(self, interactions: Interactions) -> tuple[Ranker, Histories]:
        """An untrained model of the items played, and the plays of each user in its rows."""
        catalogue = np.bincount(interactions.items, minlength=interactions.num_items) > 0
        rows = np.where(catalogue, np.cumsum(catalogue) - 1, -1)
        plays = translate(interactions.histories(), rows)
        since = int(interactions.days.max()) + 1 - RECENT_DAYS
        popular = rows[order_by_plays(interactions.items, interactions.days, catalogue, since)]
        count = int(catalogue.sum())
        model = build_model(self.config, count, candidate_frequency(plays, count)).to(self._device)
        recent = np.bincount(rows[interactions.items[interactions.days >= since]], minlength=count)
        return Ranker(model, self.config, interactions.item_ids[catalogue], popular, recent), plays

    def _find(self, users: Iterable[Any] | None, unknown: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of ``users`` and their rows."""
        if unknown not in ("raise", "skip"):
            raise ValueError(f"unknown must be 'raise' or 'skip', got {unknown!r}")
        if users is None:
            return self._user_ids, np.arange(len(self._user_ids))
        ids = as_ids(users, "users")
        rows = rows_of(ids, self._user_ids, "user")
        missing = ids[rows < 0]
        if len(missing) and unknown == "raise":
            raise InputError(f"users: found {len(missing):,} that were not in the log, such as {missing.tolist()[0]!r}")
        return ids[rows >= 0], rows[rows >= 0]


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _encode_lists(ranker: Ranker, histories: ItemLists) -> Histories:
    """Lists of item ids as lists of the model's rows, without unknown items."""
    values = histories.values() if isinstance(histories, Mapping) else histories
    lists = [as_ids(items, "histories") for items in values]
    lengths = [len(ids) for ids in lists]
    filled = [ids for ids in lists if len(ids)]
    rows = ranker.encode(as_ids(np.concatenate(filled), "histories") if filled else np.empty(0, dtype=np.int64))
    owners = np.repeat(np.arange(len(lists)), lengths)
    return Histories.group(owners[rows >= 0], rows[rows >= 0], len(lists))


def _add_users(users: NDArray[Any], histories: Histories, more: NDArray[Any]) -> tuple[NDArray[Any], Histories]:
    """``users`` and, behind them, those of ``more`` that are new, with empty histories."""
    new = more[rows_of(more, users, "user") < 0]
    offsets = np.append(histories.offsets, np.full(len(new), histories.offsets[-1]))
    return np.concatenate([users, new]) if len(new) else users, Histories(offsets, histories.items)


def _task(
    ranker: Ranker, users: NDArray[Any], histories: Histories, plays: Interactions
) -> tuple[EvaluationTask, NDArray[np.int64]]:
    """The task to rank ``plays`` of ``users``, and the model's row of each of its items.

    Its items are the model's, and behind them those of ``plays`` that the model does not know.
    """
    encoded = ranker.encode(plays.item_ids)
    known = np.arange(len(ranker.item_ids))
    cold = encoded < 0
    encoded[cold] = len(known) + np.arange(cold.sum())
    targets = Histories.group(*_distinct(plays.users, encoded[plays.items]), plays.num_users)
    players = np.flatnonzero(targets.lengths)
    history = histories.select(rows_of(plays.user_ids[players], users, "user"))
    catalogue = np.append(np.ones(len(known), dtype=bool), np.zeros(cold.sum(), dtype=bool))
    task = EvaluationTask("valid", players, targets.select(players), history, catalogue, ranker.popular)
    return task, np.append(known, np.full(cold.sum(), -1))


def _distinct(users: NDArray[np.int32], items: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The plays without those that repeat a user's earlier one."""
    pairs = pl.DataFrame({"user": users, "item": items}).unique(maintain_order=True)
    return pairs["user"].to_numpy(), pairs["item"].to_numpy()


def _extend(ranker: Ranker, users: NDArray[Any], histories: Histories, plays: Interactions) -> Histories:
    """The histories of ``users`` with the later ``plays`` behind them."""
    owners = rows_of(plays.user_ids, users, "user")[plays.users]
    items = ranker.encode(plays.item_ids)[plays.items]
    known = items >= 0
    return Histories.group(
        np.concatenate([histories.users, owners[known]]),
        np.concatenate([histories.items, items[known]]),
        len(users),
    )
