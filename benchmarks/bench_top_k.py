"""top_k against faiss's exact index and products of blocks in torch: 50 items of 157,691 for users with 8 interests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from checking import needs_native
from measure import Report
from torch import Tensor

from cmi_fast.retrieval import top_k

pytestmark = needs_native

TOLERANCE = 1e-5  # scores in float32 against float32
K, EXCLUDED = 50, 60
# users, m, V, d
PAPER = (1000, 8, 157_691, 64)


def make(users: int, m: int, count: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit interests, items, and 60 excluded items a user."""
    torch.manual_seed(0)
    interests = torch.nn.functional.normalize(torch.randn(users, m, d), dim=-1)
    offsets = torch.arange(users + 1) * EXCLUDED
    return interests, torch.randn(count, d), offsets, torch.randint(count, (users * EXCLUDED,))


class Faiss:
    """IndexFlatIP, asked for as many items an interest as exclusion may need; their lists merged, seen items left out.

    The index is built beforehand; ours packs the items within the time that is measured.
    """

    def __init__(self, items: Tensor) -> None:
        self.index = pytest.importorskip("faiss").IndexFlatIP(items.shape[1])
        self.index.add(items.numpy())
        self.count = len(items)

    def __call__(self, interests: Tensor, ids: Tensor) -> Sequence[Tensor]:
        users, m, d = interests.shape
        found = self.index.search(interests.view(-1, d).numpy(), min(K + EXCLUDED, self.count))
        scores, rows = (torch.from_numpy(x).view(users, -1) for x in found)
        user = torch.arange(users)
        left_out = torch.isin(user[:, None] * self.count + rows, user.repeat_interleave(EXCLUDED) * self.count + ids)
        rows, order = rows.sort(dim=1)
        scores = scores.masked_fill(left_out, -torch.inf).gather(1, order)
        # An item that several interests found lies in neighbouring places: the best of them moves to the last.
        for _ in range(m - 1):
            same = rows[:, 1:] == rows[:, :-1]
            scores[:, 1:] = torch.where(same, torch.maximum(scores[:, 1:], scores[:, :-1]), scores[:, 1:])
        scores[:, :-1].masked_fill_(rows[:, 1:] == rows[:, :-1], -torch.inf)
        return [scores.topk(K, dim=1).values]


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_speed(benchmark: object, report: Report, precision: str) -> None:
    users, m, count, d = PAPER if report.timed else (20, 8, 3000, 16)
    interests, items, offsets, ids = make(users, m, count, d)
    faiss = Faiss(items)
    report.compare(
        benchmark,
        "top_k",
        f"1000-users-{precision}",
        {
            "cmi_fast": lambda: [torch.ops.cmi_fast.top_k(interests, items, K, offsets, ids, precision)[0]],
            "faiss IndexFlatIP": lambda: faiss(interests, ids),
            "torch, blocked": lambda: [
                top_k(interests, items, K, exclude_offsets=offsets, exclude_ids=ids, backend="reference")[0]
            ],
        },
        tolerance=TOLERANCE,
        flops=2 * users * m * count * d,
        rounds=4,
    )
