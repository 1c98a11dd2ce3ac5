"""How kernels are started, and the sizes of their tiles: by rule from the shapes, without timing anything."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

# Of products in the type of that many bytes: rows and columns of a tile, and dimensions read at once. As large as fits
# the registers, which test_triton_compiles watches: float32 runs on the ordinary cores and needs many.
TILES = {2: (64, 64, 128), 4: (32, 32, 64), 8: (16, 16, 16)}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run ``kernel`` on the device of its first argument, or of its first; an empty grid has nothing to do."""
    if 0 in grid:
        return
    first = arguments[0]
    with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
        kernel[grid](*arguments, **constants)


def tile_sizes(dtype: torch.dtype, d: int) -> tuple[int, int, int]:
    """Rows, columns and dimensions of a tile of products in ``dtype``."""
    rows, columns, chunk = TILES[dtype.itemsize]
    return rows, columns, chunk_size(d, chunk)


def chunk_size(d: int, largest: int = 64) -> int:
    """Dimensions read at once: d rounded up to a power of two, at least the 16 that a matrix product takes.

    More than ``largest`` dimensions are read in several chunks.
    """
    return min(max(16, triton.next_power_of_2(d)), largest)


def half_range(losses_grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The cotangent, and what to multiply gradients with afterwards.

    Weights of a mean over many anchors underflow in float16, which the second matrix product of float16 rows takes
    them in: there they are scaled to 4096 at most.
    """
    if dtype != torch.float16 or losses_grad.numel() == 0:
        return losses_grad, None
    scale = losses_grad.abs().amax() / 4096
    scale = torch.where(scale == 0, 1.0, scale)
    return losses_grad / scale, scale
