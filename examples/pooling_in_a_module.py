"""The pooling inside a model of one's own, compiled as one graph: python examples/pooling_in_a_module.py

A small retrieval model: a history of item ids becomes eight interests, the interests score the next item. It trains on
random users who each like two of four kinds of items, and prints the loss and the recall of held-out plays.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.functional import interest_softmax_loss, item_soft_assignment_pool

ITEMS, KINDS = 2000, 4


class InterestModel(nn.Module):
    def __init__(self, items: int, categories: int = 8, dim: int = 32) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.randn(items, dim) / dim**0.5)
        self.categories = nn.Parameter(torch.randn(categories, dim))

    def forward(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Unit interests [B, m, d] of item ids [B, L]."""
        return F.normalize(item_soft_assignment_pool(history, self.items, self.categories, lengths), dim=-1)

    def loss(self, history: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Every user's next item against those of the other users."""
        candidates = F.normalize(self.items[targets], dim=-1)
        rows = torch.arange(len(targets))
        return interest_softmax_loss(self(history, lengths), candidates, rows, candidate_ids=targets)


def sample(users: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Histories [users, 20], their lengths and the next item; item i is of kind i % KINDS."""
    liked = torch.rand(users, KINDS, generator=generator).argsort(1)[:, :2]
    kinds = liked.gather(1, torch.randint(0, 2, (users, 21), generator=generator))
    items = torch.randint(0, ITEMS // KINDS, (users, 21), generator=generator) * KINDS + kinds
    return items[:, :20], torch.randint(5, 21, (users,), generator=generator), items[:, 20]


@torch.no_grad()
def share_of_liked_kinds(model: InterestModel, generator: torch.Generator) -> float:
    """Of the 50 best items of each user, those of a kind in the history; one half would be chance."""
    history, lengths, _ = sample(500, generator)
    best = (model(history, lengths) @ F.normalize(model.items, dim=-1).T).amax(1).topk(50).indices
    inside = torch.arange(20) < lengths[:, None]
    in_history = torch.stack([((history % KINDS == kind) & inside).any(1) for kind in range(KINDS)], 1)
    return float(in_history.gather(1, best % KINDS).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--compiler", default="inductor", help="torch.compile's backend")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = InterestModel(ITEMS)
    loss = torch.compile(model.loss, fullgraph=True, backend=arguments.compiler)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    print(f"before: {share_of_liked_kinds(model, generator):.2f} of the recommended items are of a liked kind")
    for step in range(arguments.steps):
        value = loss(*sample(256, generator))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {value.item():.3f}")
    print(f"after: {share_of_liked_kinds(model, generator):.2f}")


if __name__ == "__main__":
    main()
