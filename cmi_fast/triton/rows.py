"""What launches the kernels of ``kernels/rows.py``, and arguments and results that all operators have."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.reference.rows import accumulation_type
from cmi_fast.triton.kernels.rows import unit_rows_backward_kernel
from cmi_fast.triton.launch import chunk_size, launch


def unit_rows_backward(
    rows: Tensor, unit_grad: Tensor, *, normalize: bool = True, wanted: bool = True, radial: Tensor | None = None
) -> Tensor | None:
    """The gradient of ``rows`` [n, d] from that of the unit rows, None unless ``wanted``; fills ``radial`` [n]."""
    n, d = rows.shape
    rows_grad = torch.empty_like(rows) if wanted else None
    launch(
        unit_rows_backward_kernel,
        (triton.cdiv(n, 32),),
        rows,
        unit_grad,
        rows_grad,
        radial,
        n,
        NORMALIZE=normalize,
        D=d,
        BLOCK=32,
        CHUNK=chunk_size(d),
    )
    return rows_grad


def as_pointer(temperature: float, temperature_tensor: Tensor | None, like: Tensor) -> Tensor:
    """The temperature on the device: a number as an argument would be rounded to float32."""
    if temperature_tensor is not None:
        return temperature_tensor
    return like.new_full((), temperature, dtype=accumulation_type(like.dtype))


def unwanted(like: Tensor) -> Tensor:
    """What a backward returns for a gradient that nobody wants: a new one each time, as results must not share."""
    return like.new_empty(0, dtype=accumulation_type(like.dtype))
