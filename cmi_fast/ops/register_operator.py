"""What every compiled operator needs to be a torch operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cmi_fast.reference.reduction import reduce_losses
from cmi_fast.reference.rows import accumulation_type


def register_operator(
    library: str, name: str, *, fake: Callable[..., Any], differentiable: Sequence[int]
) -> Callable[..., Tensor]:
    """Give the compiled operator ``library::name`` its shape function and its gradient.

    One convention serves every operator: with its inputs x and outputs y or (y, saved...), the gradient is the operator
    ``name_backward(y_grad, saved..., x..., wanted...)``. It has one flag and one result for each input that
    ``differentiable`` counts; an unwanted result is empty, of the type that sums run in. Only y has a gradient.

    Returns:
        The function to call: x to y, or to what its keyword ``reduction`` makes of the losses y.
    """
    forward = getattr(getattr(torch.ops, library), name).default
    gradient = getattr(getattr(torch.ops, library), f"{name}_backward").default

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        inputs = arguments[-len(differentiable) - inputs_count : -len(differentiable)]
        wanted = arguments[-len(differentiable) :]
        unwanted = accumulation_type(arguments[0].dtype)
        return tuple(
            torch.empty_like(inputs[index], memory_format=torch.contiguous_format)
            if want
            else arguments[0].new_empty(0, dtype=unwanted)
            for index, want in zip(differentiable, wanted, strict=True)
        )

    def save(ctx: Any, inputs: tuple[Any, ...], saved: tuple[Tensor, ...]) -> None:
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*saved, *[x if isinstance(x, Tensor) else None for x in inputs])

    def differentiate(ctx: Any, y_grad: Tensor, needs_input_grad: Sequence[bool]) -> list[Tensor | None]:
        tensors, options = ctx.saved_tensors, ctx.options
        saved = len(tensors) - len(options)
        inputs = [x if option is None else option for x, option in zip(tensors[saved:], options, strict=True)]
        wanted = [needs_input_grad[index] for index in differentiable]
        results = gradient(y_grad, *tensors[:saved], *inputs, *wanted)
        gradients: list[Tensor | None] = [None] * len(inputs)
        for index, want, result in zip(differentiable, wanted, results, strict=True):
            gradients[index] = result if want else None
        return gradients

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = output[1:] if isinstance(output, tuple) else ()
        save(ctx, inputs, saved)
        if saved:
            ctx.mark_non_differentiable(*saved)

    def backward(ctx: Any, y_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(differentiate(ctx, y_grad, ctx.needs_input_grad))

    def no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{library}::{name} has no second derivative; use backend='reference', which has one, to differentiate "
            "twice"
        )

    inputs_count = len(forward._schema.arguments)
    torch.library.register_fake(f"{library}::{name}", fake)
    torch.library.register_fake(f"{library}::{name}_backward", backward_fake)
    torch.library.register_autograd(f"{library}::{name}", backward, setup_context=setup_context)
    torch.library.register_autograd(f"{library}::{name}_backward", no_second_derivative)

    class Eager(torch.autograd.Function):
        """The same without torch.library's dispatch through Python, and with the reduction of losses in the same node.

        For a small batch either costs more than the operator itself.
        """

        @staticmethod
        def forward(ctx: Any, reduction: str, *inputs: Any) -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                output = forward(*inputs)
                y, saved = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
                save(ctx, inputs, saved)
                ctx.reduction, ctx.shape = reduction, y.shape
                return reduce_losses(y, reduction)

        @staticmethod
        def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
            with _below_autograd_unless_recording():
                if ctx.reduction == "mean":
                    y_grad = y_grad / ctx.shape.numel()
                if ctx.reduction != "none":
                    y_grad = y_grad.expand(ctx.shape)
                return None, *differentiate(ctx, y_grad, ctx.needs_input_grad[1:])

    eager = _named(Eager, name)

    def run(reduction: str, inputs: Sequence[Any]) -> Tensor:
        output = forward(*inputs)
        return reduce_losses(output[0] if isinstance(output, tuple) else output, reduction)

    def call(*inputs: Any, reduction: str = "none") -> Tensor:
        if torch.compiler.is_compiling():
            return run(reduction, inputs)  # the gradient that torch.library knows is traced with it
        if torch.is_grad_enabled() and _requires_grad(inputs[index] for index in differentiable):
            return eager(reduction, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return run(reduction, inputs)

    return call


def _requires_grad(inputs: Iterable[Tensor | None]) -> bool:
    return any(x is not None and x.requires_grad for x in inputs)


def _below_autograd_unless_recording() -> AbstractContextManager[object]:
    """Within create_graph=True operators stay above autograd, which then refuses their second derivative."""
    return nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd()


def _named(function: type[torch.autograd.Function], name: str) -> Callable[..., Any]:
    """``apply`` of the function under the name that profilers and ``grad_fn`` show."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    apply: Callable[..., Any] = type(camel, (function,), {}).apply  # type: ignore[attr-defined]
    return apply
