"""The operators of the library ``cmi_fast_triton``, which Triton kernels run.

It is a library of its own, as a second kernel on a dispatch key of the compiled operators in ``cmi_fast`` would
silently replace the first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cmi_fast.ops.register_operator import register_operator

LIBRARY = "cmi_fast_triton"
_library = torch.library.Library(LIBRARY, "FRAGMENT")


def register_triton_operator(
    name: str, arguments: str, *, outputs: int, differentiable: Sequence[int], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define ``name`` and ``name_backward``, run by ``forward`` and ``backward`` of ``cmi_fast.triton.<name>``.

    Args:
        arguments: of the forward, as a schema has them.
        outputs: how many there are: the result, then what the backward wants to see again.
        differentiable, fake: as :func:`register_operator` has them, which gives shapes and gradient.
    """
    cotangent_and_saved = [f"Tensor output_{i}" for i in range(outputs)]
    wanted = [f"bool wanted_{i}" for i in differentiable]
    _define(name, "forward", arguments, outputs)
    _define(f"{name}_backward", "backward", ", ".join([*cotangent_and_saved, arguments, *wanted]), len(wanted))
    return register_operator(LIBRARY, name, fake=fake, differentiable=differentiable)


def _define(operator: str, function: str, arguments: str, results: int) -> None:
    returns = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    _library.define(f"{operator}({arguments}) -> {returns}")
    module = f"cmi_fast.triton.{operator.removesuffix('_backward')}"

    def run(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments)

    for device in ("CPU", "CUDA"):
        _library.impl(operator, run, device)
