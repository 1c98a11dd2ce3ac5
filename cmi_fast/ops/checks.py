"""Checks of a caller's arguments, in the caller's terms.

Shapes, dtypes and devices are always checked. Values (lengths, offsets, ids) are checked on CPU tensors; on CUDA that
would wait for the device, so it is off there unless ``CMI_FAST_CHECK=1``, and a compiled graph leaves it to the
operator, which raises ``RuntimeError``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmi_fast.reference.rows import accumulation_type

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32)
FP32_PRECISIONS = ("ieee", "tf32")
REDUCTIONS = ("none", "sum", "mean")
MAX_VIEWS = 8
_LARGEST = torch.finfo(torch.float32).max  # of a temperature: kernels may hold it in float32


def as_int64(tensor: Tensor) -> Tensor:
    """The tensor itself where it is int64: to ask torch for that costs as much as a check."""
    return tensor if tensor.dtype == torch.int64 else tensor.to(torch.int64)


def describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_tensor(name: str, tensor: object, shape: str, dtypes: Sequence[torch.dtype] = FLOATING) -> Tensor:
    """``tensor`` is a tensor of one of ``dtypes`` with the rank that ``shape`` shows.

    ``shape`` is such as ``"[B, L, d]"``, or ``"[N, d] or [B, m, d]"``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected a dtype among {names}, found {describe(tensor)}")
    if tensor.dim() not in [alternative.count(",") + 1 for alternative in shape.split(" or ")]:
        raise ValueError(f"{name}: expected shape {shape}, found {describe(tensor)}")
    return tensor


def check_shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """``tensor`` has exactly the shape ``expected``; ``meaning`` says where it comes from (``"[B], as items"``)."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {list(expected)} ({meaning}), found {list(tensor.shape)}")


def check_same(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """All tensors share the first one's device, and floating ones its dtype."""
    check_device(first_name, first, **others)
    dtype = first.dtype
    for name, other in others.items():
        if other is not None and other.dtype != dtype and other.is_floating_point():
            raise TypeError(f"{name}: expected dtype {dtype}, as {first_name}, found {other.dtype}")


def check_device(first_name: str, first: Tensor, **others: Tensor | None) -> None:
    """All tensors share the first one's device."""
    device = first.device
    for name, other in others.items():
        if other is None:
            continue
        if not isinstance(other, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(other).__name__}")
        if other.device != device:
            raise ValueError(f"{name}: expected device {device}, as {first_name}, found {other.device}")


def check_not_empty(name: str, tensor: Tensor, shape: str) -> None:
    """No dimension of ``tensor`` is zero; ``shape`` (such as ``"[m, d]"``) names them."""
    if tensor.numel() == 0:
        raise ValueError(f"{name}: expected shape {shape} without a zero, found {list(tensor.shape)}")


def check_choice(name: str, choice: object, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {choice!r}")


def check_temperature(temperature: float | Tensor, like: Tensor, *, least: float = 0.0) -> tuple[float, Tensor | None]:
    """The operators' two arguments: a number and None, or 1.0 and a 0-d tensor of the type that ``like`` is summed in.

    ``least`` is the smallest temperature allowed; a tensor's is compared with it as its own dtype holds it.
    """
    if isinstance(temperature, Tensor):
        if temperature.dim() != 0 or not temperature.is_floating_point():
            raise ValueError(f"temperature: expected a number or a 0-d tensor, found {describe(temperature)}")
        if values_can_be_read(temperature):
            check_temperature(temperature.item(), like, least=_as_held(least, temperature.dtype))
        if temperature.device != like.device and temperature.is_meta:
            raise ValueError(f"temperature: expected device {like.device}, found {temperature.device}")
        return 1.0, temperature.to(device=like.device, dtype=accumulation_type(like.dtype))
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float, Real)):
        raise TypeError(f"temperature: expected a number or a 0-d tensor, found {type(temperature).__name__}")
    if not 0 < temperature <= _LARGEST:
        raise ValueError(f"temperature: expected a positive finite number, found {temperature}")
    least = max(least, 2 / torch.finfo(accumulation_type(like.dtype)).max)  # its inverse must be a number, too
    if temperature < least:
        raise ValueError(f"temperature: expected at least {least:g}, found {temperature:g}")
    return float(temperature), None


def _as_held(number: float, dtype: torch.dtype) -> float:
    return torch.tensor(number, dtype=dtype, device="cpu").item()


def check_sequences(name: str, rows: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> None:
    """Lengths [B] of padded ``rows`` [B, L, ...], or offsets [B + 1] of jagged ``rows`` [T, ...]."""
    if lengths is not None and offsets is not None:
        raise ValueError("lengths, offsets: expected one of them (padded or jagged sequences), found both")
    if lengths is not None:
        check_tensor("lengths", lengths, "[B]", INTEGER)
        check_shape("lengths", lengths, rows.shape[:1], f"[B], as {name}")
        if values_can_be_read(lengths):
            check_range("lengths", lengths, 0, rows.shape[1] + 1, ValueError)
    if offsets is not None:
        check_tensor("offsets", offsets, "[B + 1]", INTEGER)
        if len(offsets) == 0:
            raise ValueError("offsets: expected shape [B + 1], found [0]")
        if values_can_be_read(offsets):
            check_offsets(offsets, len(rows), name)


def check_places(name: str, places: int, items: Tensor, offsets: Tensor | None) -> None:
    """``name`` has a place for every item of padded ``items`` [B, L, ...], or of the longest jagged sequence."""
    longest = items.shape[1] if offsets is None else 0
    if offsets is not None and len(offsets) > 1 and values_can_be_read(offsets):
        longest = int(offsets.diff().max())
    if longest > places:
        raise ValueError(f"{name}: expected at least {longest} places, as the longest sequence, found {places}")


def check_offsets(offsets: Tensor, total: int, name: str) -> None:
    falls = (offsets.diff() < 0).nonzero()
    if len(falls):
        b = int(falls[0])
        raise ValueError(f"offsets: expected rising values, found offsets[{b}] = {offsets[b]}, then {offsets[b + 1]}")
    if offsets[0] != 0 or offsets[-1] != total:
        raise ValueError(
            f"offsets: expected values from 0 to {total} (rows of {name}), found {offsets[0]} to {offsets[-1]}"
        )


def check_views(views: Tensor | None, shape: torch.Size) -> None:
    """Membership of V sub-sequences: bool [V, B, L] or [V, T], V <= 8."""
    if views is None:
        return
    check_tensor("views", views, "[V, B, L]" if len(shape) == 2 else "[V, T]", (torch.bool,))
    check_shape("views", views, (len(views), *shape), "[V, B, L] or [V, T], as the items")
    if not 1 <= len(views) <= MAX_VIEWS:
        raise ValueError(f"views: expected 1 to {MAX_VIEWS} views, found {len(views)}")


def check_ids(ids: Tensor, table: Tensor, lengths: Tensor | None) -> None:
    """``ids`` [B, L] within ``lengths`` [B], or all of them, are rows of ``table``."""
    inside = None if lengths is None else torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    check_range("ids", ids, 0, len(table), IndexError, only=inside)


def check_range(
    name: str, values: Tensor, low: int, high: int, error: type[Exception], *, only: Tensor | None = None
) -> None:
    """low <= values < high, or ``error`` naming the first position outside; ``only`` (bool) says where to look."""
    if only is None and values.numel():
        lowest, highest = values.aminmax()
        if low <= lowest and highest < high:
            return  # as nearly always, and a good deal faster
    outside = (values < low) | (values >= high)
    positions = (outside if only is None else outside & only).nonzero()
    if len(positions):
        position = tuple(positions[0].tolist())
        place = ", ".join(map(str, position))
        raise error(f"{name}[{place}]: expected a value in [{low}, {high}), found {values[position]}")


def inside_transform() -> bool:
    """Inside vmap, torch.func.grad or forward-mode differentiation, where a custom operator fails or gives zeros."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def values_can_be_read(tensor: Tensor) -> bool:
    # Fake tensors, which tracing runs on, are a subclass.
    if torch.compiler.is_compiling() or tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    if torch._C._functorch.is_batchedtensor(tensor):
        return False  # one value for each of vmap's elements
    return tensor.device.type == "cpu" or os.environ.get("CMI_FAST_CHECK") == "1"
