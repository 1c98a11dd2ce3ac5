"""Which implementation of an operator runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmi_fast import _native, triton
from cmi_fast.ops.checks import inside_transform

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
WITH_CUDA_KERNELS = ("interest_softmax_loss", "item_soft_assignment_pool", "nt_xent_loss", "soft_assignment_pool")


def choose_backend(
    backend: str,
    operator: str,
    tensor: Tensor,
    *,
    cpu: Sequence[torch.dtype] = (),
    unsupported: str | None = None,
    triton_unsupported: str | None = None,
    cuda_unsupported: str | None = None,
) -> str:
    """The implementation to call: "reference", "cpu", "triton" or "cuda".

    Args:
        backend: the caller's wish. ``"auto"`` takes the fastest that can run, never ``"cuda"``; any other never falls
            back.
        operator: public name, for the message.
        tensor: an argument whose device and dtype decide.
        cpu: dtypes of the compiled CPU kernel; empty where there is none.
        unsupported: what in this call the compiled CPU kernel cannot do, or None.
        triton_unsupported, cuda_unsupported: the same of Triton's and of the CUDA kernel.

    Raises:
        ValueError: the name is unknown, an explicit backend cannot run this call, or the environment asks for an ISA
            level that this CPU does not have; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "reference":
        return backend
    if _native.environment_error is not None:
        raise ValueError(_native.environment_error)
    has_triton = hasattr(torch.ops.cmi_fast_triton, operator)
    has = {"cpu": bool(cpu), "triton": has_triton, "cuda": operator in WITH_CUDA_KERNELS}
    if not has.get(backend, True):
        raise ValueError(f"backend: {operator} has no {backend!r} kernel in this version; use 'auto' or 'reference'")
    if backend == "cuda":
        return _choose_cuda(operator, tensor, cuda_unsupported)
    if backend == "triton" or (backend == "auto" and has_triton and tensor.is_cuda and triton.is_automatic()):
        return _choose_triton(backend, operator, tensor, triton_unsupported)
    obstacle = unsupported
    if not _native.available:
        obstacle = "the package was installed without compiled operators"
    elif tensor.device.type != "cpu":
        obstacle = f"the tensors are on {tensor.device}"
    elif inside_transform():
        obstacle = "it has no rule for torch.func's transforms and forward-mode differentiation"
    elif tensor.dtype not in cpu:
        obstacle = f"it has no kernel for {tensor.dtype}"
    if obstacle is None and cpu:
        return "cpu"
    if backend == "cpu":
        raise ValueError(f"backend: {operator} cannot run on 'cpu': {obstacle}; use 'auto' or 'reference'")
    return "reference"


def goes_straight_to_cpu(backend: str, tensors: Sequence[Tensor | None]) -> bool:
    """Whether the CPU operator may be called before anything is checked, as it checks everything itself.

    Nothing but tensors on the CPU, and no autocast, tracing or transform around them. For a small batch checks in
    Python take longer than the operator; they are left to the call that it refuses.
    """
    if backend not in ("auto", "cpu") or not _native.available or _native.environment_error is not None:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or inside_transform():
        return False
    plain = Tensor, torch.nn.Parameter
    return all(x is None or (type(x) in plain and x.is_cpu) for x in tensors)


def automatic_backends(operator: str) -> tuple[str, str]:
    """What ``backend="auto"`` takes on CPU and on CUDA tensors in float32."""
    has_cpu = _native.available and hasattr(torch.ops.cmi_fast, operator)
    has_triton = triton.is_automatic() and hasattr(torch.ops.cmi_fast_triton, operator)
    return "cpu" if has_cpu else "reference", "triton" if has_triton else "reference"


def _choose_cuda(operator: str, tensor: Tensor, unsupported: str | None) -> str:
    obstacle = _native.cuda_obstacle
    if obstacle is None and not tensor.is_cuda:
        obstacle = f"the tensors are on {tensor.device}"
    if obstacle is None and tensor.dtype == torch.float64:
        obstacle = "it has no kernel for torch.float64"
    if obstacle is None:
        obstacle = unsupported
    if obstacle is None and inside_transform():
        obstacle = "it has no rule for torch.func's transforms and forward-mode differentiation"
    if obstacle is None:
        return "cuda"
    raise ValueError(f"backend: {operator} cannot run on 'cuda': {obstacle}")


def _choose_triton(backend: str, operator: str, tensor: Tensor, unsupported: str | None) -> str:
    obstacle = unsupported or triton.obstacle(tensor)
    if obstacle is None and inside_transform():
        obstacle = "it has no rule for torch.func's transforms and forward-mode differentiation"
    if obstacle is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend: {operator} cannot run on 'triton': {obstacle}")
    return "reference"
