"""SimCLR with cmi_fast's NTXentLoss in place of lightly's: python examples/simclr_loss.py

Only the import changes. The example trains a small encoder on two noisy crops of random pictures, with each loss from
the same start, and prints what both losses come to, how long a step of the loss takes and how much memory it needs.
lightly's own loss is used where it is installed, otherwise the same in plain PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmi_fast.nn import NTXentLoss  # was: from lightly.loss import NTXentLoss

Loss = Callable[[Tensor, Tensor], Tensor]


class PlainNTXentLoss(nn.Module):
    """SimCLR's loss as usually written: all scores of a batch in one matrix."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([out0, out1]), dim=-1)
        scores = rows @ rows.T / self.temperature
        scores.fill_diagonal_(-torch.inf)
        return F.cross_entropy(scores, torch.arange(len(rows)).roll(len(out0)))


def peer_loss(temperature: float) -> nn.Module:
    try:
        return importlib.import_module("lightly.loss").NTXentLoss(temperature)
    except (ImportError, RuntimeError):  # not installed, or its torchvision does not fit this torch
        return PlainNTXentLoss(temperature)


def make_encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 64),
    )


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A crop of 24 x 24 with noise; the same corner for the whole batch keeps the example short."""
    top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
    crops = pictures[:, :, top : top + 24, left : left + 24]
    return crops + 0.1 * torch.randn(crops.shape, generator=generator)


def train(loss: Loss, steps: int, batch: int) -> list[float]:
    encoder = make_encoder()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    pictures = F.interpolate(torch.rand(batch, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    losses = []
    for _ in range(steps):
        value = loss(encoder(augment(pictures, generator)), encoder(augment(pictures, generator)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def largest_difference(loss: Loss, peer: Loss, views: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Between the two losses' values, and between their gradients relative to the largest."""

    def value_and_gradient(function: Loss) -> tuple[Tensor, Tensor]:
        leaves = [view.clone().requires_grad_() for view in views]
        value = function(*leaves)
        return value.detach(), torch.cat(torch.autograd.grad(value, leaves))

    (our_value, our_gradient), (value, gradient) = value_and_gradient(loss), value_and_gradient(peer)
    return float(abs(our_value - value)), float((our_gradient - gradient).abs().max() / gradient.abs().max())


def cost(loss: Loss, views: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Milliseconds of one forward and backward, and by how many MB it raised the most memory ever used."""
    leaves = [view.clone().requires_grad_() for view in views]
    before = peak_memory()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        torch.autograd.grad(loss(*leaves), leaves)
        times.append(time.perf_counter() - started)
    return 1e3 * min(times), peak_memory() - before


def peak_memory() -> float:
    """In MB: ru_maxrss counts KB on Linux and bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256, help="pictures a step")
    parser.add_argument("--rows", type=int, default=2048, help="rows of each view when time and memory are measured")
    arguments = parser.parse_args()

    loss, peer = NTXentLoss(temperature=0.1), peer_loss(temperature=0.1)
    names = "cmi_fast", f"{type(peer).__module__.replace('__main__', 'this file')}.{type(peer).__name__}"
    first = torch.randn(arguments.rows, 64)
    views = first, first + torch.randn_like(first)
    # Before the training, and ours first: the peak of a process never falls.
    for name, function in zip(names, (loss, peer), strict=True):
        milliseconds, megabytes = cost(function, views)
        print(f"{name}: {milliseconds:.1f} ms and {megabytes:.0f} MB for 2 x {arguments.rows} rows")
    value, gradient = largest_difference(loss, peer, views)
    print(f"differences: value {value:.1e}, gradient {gradient:.1e} of its largest entry")

    for name, function in zip(names, (loss, peer), strict=True):
        history = train(function, arguments.steps, arguments.batch)
        print(f"{name}: loss {history[0]:.4f} -> {history[-1]:.4f} in {len(history)} steps")


if __name__ == "__main__":
    main()
