"""lightly's ``NTXentLoss``, an outside oracle for the tests and a peer for the benchmarks."""

from __future__ import annotations

import importlib

import torch

_torchvision = torch.library.Library("torchvision", "FRAGMENT")


def lightly_loss() -> type[torch.nn.Module]:
    """The class.

    Raises:
        ImportError: lightly cannot be imported here; the message says why.
    """
    _import_torchvision()
    return importlib.import_module("lightly.loss").NTXentLoss


def _import_torchvision() -> None:
    """lightly needs it, though not for the loss.

    PyPI's torchvision is built for CUDA. Beside a torch for the CPU its library does not load, and then its import
    fails as well, over the shape functions of two operators that the library would have declared.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            _torchvision.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
