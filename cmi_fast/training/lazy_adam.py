"""Adam for tables of which a step reads few rows."""

from __future__ import annotations

import torch
from torch import Tensor


class LazyAdam(torch.optim.Adam):
    """Adam, except that a parameter with a sparse gradient is updated in the rows that the gradient holds, alone.

    Each row is then an Adam of its own, whose steps are the batches the row is in: its moments decay, and its bias
    correction counts, only there. This is another optimiser than Adam, in which every row moves on in every step by
    what is left of its momentum. It differs from ``torch.optim.SparseAdam``, which counts all steps, so that the first
    update of a row that appears late is (1 - beta1) / sqrt(1 - beta2) = 3 learning rates long; here it is one.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, group["lr"], beta1, beta2, group["eps"])
                    parameter.grad = None
        super().step()

    def _update_rows(self, table: Tensor, lr: float, beta1: float, beta2: float, eps: float) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(len(table), device=table.device)
            state["exp_avg"] = torch.zeros_like(table, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        assert table.grad is not None
        rows, gradient = _distinct_rows(table.grad)
        count = state["step"][rows] + 1
        first = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = count, first, second
        count = count.double()  # in float32, 1 - beta2 would lose four digits
        first.mul_((lr / (1 - beta1**count))[:, None])
        second.div_((1 - beta2**count)[:, None]).sqrt_().add_(eps)
        table.index_add_(0, rows, first.div_(second), alpha=-1)


def _distinct_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [R] of a sparse gradient, each once, and their values [R, d]."""
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()
