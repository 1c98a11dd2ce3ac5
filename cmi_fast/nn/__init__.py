"""Drop-in layers and losses on the operators of ``cmi_fast.functional``."""

from cmi_fast.nn.pooling import SoftAssignmentPooling

__all__ = ["SoftAssignmentPooling"]
