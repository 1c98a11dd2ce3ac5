"""What every compiled operator needs to be a torch operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def register_operator(
    library: str, name: str, *, fake: Callable[..., Any], differentiable: Sequence[int]
) -> Callable[..., Any]:
    """Give the compiled operator ``library::name`` its shape function and its gradient; returns what to call.

    One convention serves every operator: with its inputs x and outputs y or (y, saved...), the gradient is the operator
    ``name_backward(y_grad, saved..., x..., wanted...)``. It has one flag and one result for each input that
    ``differentiable`` counts; an unwanted result is empty. Only y has a gradient.
    """
    forward = getattr(getattr(torch.ops, library), name).default
    gradient = getattr(getattr(torch.ops, library), f"{name}_backward").default

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        inputs = arguments[-len(differentiable) - inputs_count : -len(differentiable)]
        wanted = arguments[-len(differentiable) :]
        return tuple(
            torch.empty_like(inputs[index], memory_format=torch.contiguous_format)
            if want
            else arguments[0].new_empty(0)
            for index, want in zip(differentiable, wanted, strict=True)
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = output[1:] if isinstance(output, tuple) else ()
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*saved, *(x if isinstance(x, Tensor) else None for x in inputs))
        if saved:
            ctx.mark_non_differentiable(*saved)

    def backward(ctx: Any, y_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors, options = ctx.saved_tensors, ctx.options
        saved = len(tensors) - len(options)
        inputs = [x if option is None else option for x, option in zip(tensors[saved:], options, strict=True)]
        wanted = [ctx.needs_input_grad[index] for index in differentiable]
        results = gradient(y_grad, *tensors[:saved], *inputs, *wanted)
        gradients: list[Tensor | None] = [None] * len(inputs)
        for index, want, result in zip(differentiable, wanted, results, strict=True):
            gradients[index] = result if want else None
        return tuple(gradients)

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
        """The same gradient without torch.library's dispatch through Python, which costs more than a small batch."""

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():  # create_graph=True: through autograd, which refuses a second derivative
                return backward(ctx, *gradients)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *gradients)

    Eager.__name__ = name
    apply: Callable[..., Any] = Eager.apply

    def call(*inputs: Any) -> Any:
        return (forward if torch.compiler.is_compiling() else apply)(*inputs)

    return call
