"""Some users in two dimensions: their interests, what they played and what they are recommended, among the items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cmi_fast.data import Histories
from cmi_fast.models import CMI
from cmi_fast.ranking import Ranker
from cmi_fast.report.diagnostics import finders, plain_interests

DRAWN = 12
LEAST_PLAYS = 5
RECENT = 40
LISTED = 20
BACKGROUND = 1200
PLANE_ITEMS = 20_000


@dataclass(frozen=True)
class Plane:
    """The two directions of largest variance of unit item vectors: ``mean`` [d], ``axes`` [d, 2], and the ``share`` of
    the variance that they hold."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    share: float

    @classmethod
    def of(cls, vectors: NDArray[np.float64]) -> Plane:
        mean = vectors.mean(0)
        centred = vectors - mean
        variances, axes = np.linalg.eigh(centred.T @ centred)
        axes = axes[:, ::-1][:, : min(2, len(mean))]
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)  # one sign for all
        if axes.shape[1] < 2:
            axes = np.hstack([axes, np.zeros_like(axes)])
        return cls(mean, axes, float(variances[-2:].sum() / max(variances.sum(), 1e-300)))

    def place(self, vectors: NDArray[np.float64]) -> list[list[float]]:
        """Rounded places of vectors [n, d]."""
        return ((vectors - self.mean) @ self.axes).round(3).tolist()


@torch.no_grad()
def user_map(
    ranker: Ranker, user_ids: NDArray[Any], histories: Histories, groups: NDArray[np.int64] | None, seed: int = 0
) -> dict[str, Any]:
    """What the page draws; ``groups`` [V]: a number for each item that colours it.

    Users are drawn at random among those with enough plays, from few plays to many.
    """
    rng = np.random.default_rng(seed)
    count = len(ranker.item_ids)
    plane = Plane.of(_unit_vectors(ranker, rng.permutation(count)[:PLANE_ITEMS]))
    enough = np.flatnonzero(histories.lengths >= LEAST_PLAYS)
    if len(enough) == 0:
        enough = np.flatnonzero(histories.lengths)
    drawn = rng.choice(enough, min(DRAWN, len(enough)), replace=False) if len(enough) else enough
    drawn = drawn[np.argsort(histories.lengths[drawn], kind="stable")]
    chosen = histories.select(drawn)
    places: dict[int, int] = {}  # of the items on the page, by row

    def items(rows: NDArray[np.integer[Any]]) -> list[int]:
        return [places.setdefault(int(row), len(places)) for row in rows]

    background = items(np.sort(rng.choice(count, min(BACKGROUND, count), replace=False)))
    users = []
    if len(drawn):
        _, found = ranker.rank(chosen, min(LISTED, count))
        by = finders(ranker, chosen, found)
        interests = plain_interests(ranker, chosen).double().numpy()
        for place, user in enumerate(drawn):
            listed = found[place] >= 0
            users.append(
                {
                    "id": str(user_ids[user]),
                    "plays": int(histories.lengths[user]),
                    "interests": plane.place(interests[place]),
                    "history": items(chosen[place][-RECENT:]),
                    "list": items(found[place][listed]),
                    "by": by[place][listed].tolist(),
                }
            )
    rows = np.fromiter(places, dtype=np.int64)
    return {
        "share": plane.share,
        "users": users,
        "background": len(background),
        "ids": [str(item) for item in ranker.item_ids[rows]],
        "xy": plane.place(_unit_vectors(ranker, rows)),
        "groups": None if groups is None else groups[rows].tolist(),
    }


def _unit_vectors(ranker: Ranker, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    model, places = ranker.model, torch.from_numpy(rows).to(ranker.model.items.device)
    vectors = model.items[places] if isinstance(model, CMI) else model.item_vectors(places)  # without the share term
    return F.normalize(vectors, dim=-1).double().cpu().numpy()
