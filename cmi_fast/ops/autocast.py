"""Autocast: the operators cast their arguments as torch's own do, then sum in the type that they choose themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_enabled(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it torch's functions keep the types they are given. (A meta device has no autocast to leave.)"""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, floating tensors in the autocast type (float64 excepted, as everywhere in torch)."""
    device = tensors[0].device
    if not autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)
