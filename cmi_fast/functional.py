"""The operators."""

from cmi_fast.ops.soft_assignment_pool import soft_assignment_pool

__all__ = ["soft_assignment_pool"]
