"""Every operator as its formula in plain PyTorch: written to be read, exact in float64, twice differentiable."""

from cmi_fast.reference.soft_assignment_pool import soft_assignment_pool

__all__ = ["soft_assignment_pool"]
