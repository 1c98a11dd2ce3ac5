"""What the interests and categories of a trained model are like: do they differ, and what do they hold?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cmi_fast.data import Histories
from cmi_fast.evaluation.categories import KnownCategories
from cmi_fast.models import CMI
from cmi_fast.models.cmi_authors import AuthorsCMI
from cmi_fast.ranking import Ranker

LIST_LENGTH = 50
TOP_ITEMS = 8
MOST_KNOWN = 16  # columns of the confusion


@dataclass(frozen=True)
class Interests:
    """Of U users with K interests: ``cosines`` [K, K], means over the users; ``share`` [K], of the first 50 items of a
    list found by each interest; ``mean_cosine`` over pairs; ``used``, how many interests a list comes from, as exp of
    the entropy of its shares, averaged."""

    users: int
    cosines: NDArray[np.float64]
    share: NDArray[np.float64]
    mean_cosine: float
    used: float


@dataclass(frozen=True)
class Category:
    """A learned category: how many items are closest to it, the mean of their probabilities for it, the closest items
    with their cosines, and its known categories by share, if any is known."""

    number: int
    items: int
    probability: float
    top: list[tuple[str, float, str | None]]  # item, cosine, its known category
    known: list[tuple[str, float]]


@dataclass(frozen=True)
class Assignment:
    """How the items are assigned to the m learned categories: ``entropy``, the mean over items, as a share of log m;
    ``largest``, the mean of the largest probability; ``mass`` [m], the share of all assignment; ``of`` [V]."""

    entropy: float
    largest: float
    mass: NDArray[np.float64]
    of: NDArray[np.int64]
    categories: list[Category]


@dataclass(frozen=True)
class Confusion:
    """Learned against known categories: ``shares`` [m, n], of a learned category's items; the n largest known ones,
    and the others as the last column; ``names`` [n]; ``overall`` [n], of all items."""

    names: list[str]
    shares: NDArray[np.float64]
    overall: NDArray[np.float64]


@torch.no_grad()
def plain_interests(ranker: Ranker, histories: Histories) -> Tensor:
    """Unit interests [U, K, d] of histories, without the general interest where the model keeps it apart."""
    if isinstance(ranker.model, CMI) and not isinstance(ranker.model, AuthorsCMI):
        vectors = ranker.model.pool(*ranker.padded(histories))
    else:
        vectors = ranker.model(*ranker.padded(histories))
    return F.normalize(vectors, dim=-1).cpu()


def interests(ranker: Ranker, histories: Histories, found: NDArray[np.int64]) -> Interests:
    """Of users with ``histories`` and the lists ``found`` [U, n] for them (-1 where a list has ended)."""
    vectors = plain_interests(ranker, histories)
    count = vectors.shape[1]
    cosines = (vectors @ vectors.transpose(1, 2)).mean(0).double().numpy()
    shares = list_shares(ranker, histories, found, count)
    entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=1)
    pairs = cosines[~np.eye(count, dtype=bool)]
    return Interests(
        len(histories),
        cosines,
        shares.mean(0),
        float(pairs.mean()) if len(pairs) else 1.0,
        float(np.exp(entropy).mean()),
    )


@torch.no_grad()
def finders(ranker: Ranker, histories: Histories, found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The interest [U, n] by which each item of the lists ``found`` is there: the one of its largest score."""
    items = ranker.item_vectors(np.maximum(found, 0))
    scores = items @ ranker.interests(histories).transpose(1, 2)
    return scores.argmax(-1).cpu().numpy()


def list_shares(ranker: Ranker, histories: Histories, found: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """The share of each user's list that each of ``count`` interests finds, [U, K]."""
    by = finders(ranker, histories, found)
    shares = np.stack([((by == k) & (found >= 0)).sum(1) for k in range(count)], axis=1)
    return shares / np.maximum(shares.sum(1, keepdims=True), 1)


@torch.no_grad()
def assignment(ranker: Ranker, known: KnownCategories | None) -> Assignment | None:
    """None for a model without learned categories."""
    model = ranker.model
    if not isinstance(model, CMI):
        return None
    items, categories = F.normalize(model.items, dim=-1), F.normalize(model.categories, dim=-1)
    cosines = (items @ categories.T).float().cpu()
    probabilities = torch.softmax(cosines / float(model.assignment_temperature), dim=-1)
    entropy = torch.special.entr(probabilities).sum(-1)
    most = max(np.log(len(categories)), 1e-12)
    of = model.assigned_categories().cpu().numpy()
    return Assignment(
        entropy=float(entropy.mean() / most),
        largest=float(probabilities.amax(-1).mean()),
        mass=probabilities.mean(0).double().numpy(),
        of=of,
        categories=[
            _category(k, of == k, cosines[:, k], probabilities[:, k], ranker.item_ids, known)
            for k in range(len(categories))
        ],
    )


def _category(
    number: int,
    members: NDArray[np.bool_],
    cosines: Tensor,
    probabilities: Tensor,
    item_ids: NDArray[Any],
    known: KnownCategories | None,
) -> Category:
    rows = np.flatnonzero(members)
    closest = rows[np.argsort(-cosines.numpy()[rows], kind="stable")][:TOP_ITEMS]
    top = [(str(item_ids[row]), float(cosines[row]), _name(known, row)) for row in closest]
    shares: list[tuple[str, float]] = []
    if known is not None:
        counts = np.bincount(known.of[rows][known.of[rows] >= 0], minlength=len(known.names))
        largest = np.argsort(-counts, kind="stable")[:3]
        shares = [(known.names[c], float(counts[c] / counts.sum())) for c in largest if counts[c]]
    return Category(number, len(rows), float(probabilities[rows].mean()) if len(rows) else 0.0, top, shares)


def _name(known: KnownCategories | None, row: int) -> str | None:
    return known.names[known.of[row]] if known is not None and known.of[row] >= 0 else None


def confusion(of: NDArray[np.int64], count: int, known: KnownCategories) -> Confusion:
    """Of items assigned to ``of`` [V] among ``count`` learned categories."""
    both = np.zeros((count, len(known.names)))
    there = known.of >= 0
    np.add.at(both, (of[there], known.of[there]), 1)
    order = np.argsort(-both.sum(0), kind="stable")
    order = order[both.sum(0)[order] > 0]
    names = [known.names[c] for c in order[:MOST_KNOWN]]
    columns = both[:, order[:MOST_KNOWN]]
    if len(order) > MOST_KNOWN:
        names.append(f"{len(order) - MOST_KNOWN} others")
        columns = np.hstack([columns, both[:, order[MOST_KNOWN:]].sum(1, keepdims=True)])
    shares = columns / np.maximum(columns.sum(1, keepdims=True), 1)
    return Confusion(names, shares, columns.sum(0) / columns.sum())
