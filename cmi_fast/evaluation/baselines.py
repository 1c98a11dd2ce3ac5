"""Popularity, ItemKNN and both together: the lines that every model is read against.

All are fitted on the training days and rank under the policy of :mod:`cmi_fast.evaluation.task`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from implicit.nearest_neighbours import CosineRecommender
from implicit.utils import ParameterWarning
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cmi_fast.data.histories import Histories
from cmi_fast.data.split import Split
from cmi_fast.evaluation.metrics import CUTOFFS
from cmi_fast.evaluation.task import EvaluationTask, popularity_order, recent_plays
from cmi_fast.reference.largest import largest

LIST_LENGTH = max(CUTOFFS)
NEIGHBOURS = (50, 100, 200, 500)
POPULARITY_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
# Pairs of items that share a user, over all users: beyond this, all neighbours take gigabytes and minutes.
MOST_PAIRS = 100_000_000
MOST_JUDGES = 5000  # valid users on whom settings are chosen: nine rankings of each
SCORE_BLOCK = 4_000_000  # scores held at a time on each thread: 32 MB in float64
SORT_BLOCK = 4_000_000  # similarities sorted at a time, about


@dataclass(frozen=True)
class Popularity:
    """Every user gets the same order of items [P], without the items of the own history."""

    order: NDArray[np.int64]

    def rank(self, task: EvaluationTask) -> NDArray[np.int64]:
        """Item rows [E, 50], best first, -1 where a list has ended."""
        longest = int(task.history.lengths.max(initial=0))
        within_reach = self.order[: LIST_LENGTH + longest]
        falling = np.arange(len(within_reach), 0, -1.0)
        return _rank(task, within_reach, lambda users: np.tile(falling, (len(users), 1)))[0]


@dataclass(frozen=True)
class ItemKNN:
    """Item-based nearest neighbours: an item's score is the sum of its similarities with the distinct items
    of the history (Deshpande and Karypis, TOIS 2004).

    similarity [V, V]: row i holds the neighbours of item i. Ties, and so the items without any score, are
    in order of recent popularity.
    """

    similarity: csr_matrix
    neighbours: int | None  # None: all

    def rank(self, task: EvaluationTask) -> NDArray[np.int64]:
        """Item rows [E, 50], best first, -1 where a list has ended."""
        return self.rank_with(task, [None])[0]

    def rank_with(self, task: EvaluationTask, added: Sequence[NDArray[np.float64] | None]) -> list[NDArray[np.int64]]:
        """As :meth:`rank`, for each of ``added`` [V], to be added to everybody's scores: these are found once."""
        history = binary_matrix(task.history, len(task.catalogue))
        similarity = self.similarity[:, task.popular]
        in_order = [None if each is None else each[task.popular] for each in added]
        return _rank(task, task.popular, lambda users: (history[users] @ similarity).toarray(), in_order)

    @classmethod
    def fit(cls, split: Split, valid: EvaluationTask) -> ItemKNN:
        """Cosine similarity on the training plays, with the number of neighbours (50, 100, 200, 500, or all
        of them where that is affordable) of best Recall@50 on ``valid``; the fewer where equal.

        The matrix is binary: a repeated play says little more about taste than the first, and would give
        heavy replayers the say over similarities.
        """
        plays = binary_matrix(split.train, split.num_items)
        affordable = (np.diff(plays.indptr).astype(np.int64) ** 2).sum() <= MOST_PAIRS
        counts = [*NEIGHBOURS, None] if affordable else list(NEIGHBOURS)
        # One product, minutes for a large log, serves all numbers of neighbours.
        similarity = sort_rows(cosine_similarity(plays, None if affordable else max(NEIGHBOURS)))
        # A generator: one matrix of nearest neighbours at a time, beside the best.
        candidates = (cls(similarity if count is None else first_of_rows(similarity, count), count) for count in counts)
        # max() returns the first of equals.
        return max(candidates, key=lambda model: valid.evaluate(model.rank(valid))[f"recall@{LIST_LENGTH}"])


@dataclass(frozen=True)
class RecentItemKNN:
    """ItemKNN's score plus ``weight`` times the item's plays on the last training days, as a share of the most played
    item's (``recent`` [V]): taste, and what is in fashion."""

    item_knn: ItemKNN
    recent: NDArray[np.float64]
    weight: float

    @classmethod
    def fit(cls, split: Split, valid: EvaluationTask, item_knn: ItemKNN) -> RecentItemKNN:
        """The weight of best Recall@50 on ``valid``, the smaller where equal."""
        plays = recent_plays(split)
        share = plays / max(1, plays.max())
        rankings = item_knn.rank_with(valid, [weight * share for weight in POPULARITY_WEIGHTS])
        recalls = [valid.evaluate(ranked)[f"recall@{LIST_LENGTH}"] for ranked in rankings]
        return cls(item_knn, share, POPULARITY_WEIGHTS[int(np.argmax(recalls))])  # the first of equals


@dataclass(frozen=True)
class Baselines:
    """All of them, fitted on the training plays: ItemKNN is that of ``recent_item_knn``."""

    recent_item_knn: RecentItemKNN
    popularity: Popularity
    recent_popularity: Popularity

    @classmethod
    def fit(cls, split: Split, valid: EvaluationTask) -> Baselines:
        """Settings are chosen on at most 5,000 users of ``valid``."""
        judges = valid.sample(MOST_JUDGES)
        recent_item_knn = RecentItemKNN.fit(split, judges, ItemKNN.fit(split, judges))
        return cls(recent_item_knn, Popularity(popularity_order(split)), Popularity(valid.popular))

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """By name, what was chosen on the valid part."""
        of_item_knn = {"neighbours": self.recent_item_knn.item_knn.neighbours or "all"}
        return {
            "item_knn": of_item_knn,
            "item_knn_recent": of_item_knn | {"weight": self.recent_item_knn.weight},
            "popularity": {},
            "recent_popularity": {},
        }

    def rank(self, task: EvaluationTask) -> dict[str, NDArray[np.int64]]:
        """By name, item rows [E, 50], best first, -1 where a list has ended."""
        recent = self.recent_item_knn
        item_knn, item_knn_recent = recent.item_knn.rank_with(task, [None, recent.weight * recent.recent])
        return {
            "item_knn": item_knn,
            "item_knn_recent": item_knn_recent,
            "popularity": self.popularity.rank(task),
            "recent_popularity": self.recent_popularity.rank(task),
        }


def evaluate_baselines(split: Split, valid: EvaluationTask, *others: EvaluationTask) -> dict[str, dict[str, Any]]:
    """``{"item_knn": {"valid": metrics, "test": metrics, "neighbours": K or "all"}, "item_knn_recent": {...,
    "weight": w}, "popularity": {...}, "recent_popularity": {...}}`` with the metrics of :func:`ranking_metrics` on
    ``valid`` and ``others``."""
    models = Baselines.fit(split, valid)
    results: dict[str, dict[str, Any]] = {name: {} for name in models.settings}
    for task in (valid, *others):
        for name, ranked in models.rank(task).items():
            results[name][task.name] = task.evaluate(ranked)
    return {name: results[name] | chosen for name, chosen in models.settings.items()}


def binary_matrix(histories: Histories, num_items: int) -> csr_matrix:
    """[U, V] float64 with a one for each item of a user's list."""
    shape = (len(histories), num_items)
    # Copies: summing the repeats sorts in place what may be shared with the caller.
    entries = (np.ones(len(histories.items)), histories.items.copy(), histories.offsets.copy())
    matrix = csr_matrix(entries, shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def cosine_similarity(plays: csr_matrix, neighbours: int | None) -> csr_matrix:
    """Cosine similarities [V, V] of the columns of the binary ``plays`` [U, V]: in row i those of item i with
    its nearest ``neighbours``, itself among them, by ``implicit``; None: with all items, by one product."""
    if neighbours is None:  # implicit would allocate a dense V x V for them
        norms = np.sqrt(np.bincount(plays.indices, minlength=plays.shape[1]))
        unit = plays.copy()
        unit.data /= norms[plays.indices]
        return csr_matrix(unit.T @ unit)
    model = CosineRecommender(K=neighbours)
    with warnings.catch_warnings():
        # implicit converts the matrix that it normalised itself, and warns of that.
        warnings.simplefilter("ignore", ParameterWarning)
        model.fit(plays, show_progress=False)
    return model.similarity


def sort_rows(matrix: csr_matrix) -> csr_matrix:
    """The same entries, those of a row by falling value, ties by column; written over ``matrix``."""
    rows = max(1, SORT_BLOCK * matrix.shape[0] // max(1, matrix.nnz))
    for first in range(0, matrix.shape[0], rows):
        ends = matrix.indptr[first : first + rows + 1]
        block = slice(ends[0], ends[-1])
        row = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        order = np.lexsort((matrix.indices[block], -matrix.data[block], row))
        matrix.indices[block], matrix.data[block] = matrix.indices[block][order], matrix.data[block][order]
    matrix.has_sorted_indices = False
    return matrix


def first_of_rows(matrix: csr_matrix, count: int) -> csr_matrix:
    """The first ``count`` entries of each row."""
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = place < count
    indptr = np.concatenate([[0], np.cumsum(np.minimum(np.diff(matrix.indptr), count))])
    return csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def _rank(
    task: EvaluationTask,
    order: NDArray[np.int64],
    score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    added: Sequence[NDArray[np.float64] | None] = (None,),
) -> list[NDArray[np.int64]]:
    """For each of ``added`` [P] the first 50 unseen items [E, 50] by falling score, ties in ``order`` [P]; -1 where a
    list has ended.

    ``score`` gives the scores [n, P] of the items in ``order`` for users 0 <= u < E of the task, before what is added.
    Blocks of users are scored on all threads: scipy's products let others run.
    """
    place = np.full(len(task.catalogue), -1)
    place[order] = np.arange(len(order))
    rankings = [np.full((len(task.users), LIST_LENGTH), -1) for _ in added]
    block = max(1, SCORE_BLOCK // max(1, len(order)))
    starts = range(0, len(task.users), block)

    def scores_of(first: int) -> NDArray[np.float64]:
        users = np.arange(first, min(first + block, len(task.users)))
        scores = score(users)
        seen = task.history.select(users)
        known = place[seen.items] >= 0
        scores[seen.users[known], place[seen.items[known]]] = -np.inf
        return scores

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for some in (starts[first : first + threads] for first in range(0, len(starts), threads)):
            for first, scores in zip(some, pool.map(scores_of, some), strict=True):
                for ranked, more in zip(rankings, added, strict=True):
                    sums = torch.from_numpy(scores if more is None else scores + more)
                    values, columns = (found.numpy() for found in largest(sums, LIST_LENGTH))
                    ranked[first : first + block, : columns.shape[1]] = np.where(values > -np.inf, order[columns], -1)
    return rankings
