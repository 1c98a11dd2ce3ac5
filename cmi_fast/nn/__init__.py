"""Drop-in layers and losses on the operators of ``cmi_fast.functional``."""

from cmi_fast.nn.gru import GRU
from cmi_fast.nn.losses import InterestSoftmaxLoss, NTXentLoss
from cmi_fast.nn.pooling import SoftAssignmentPooling

__all__ = ["GRU", "InterestSoftmaxLoss", "NTXentLoss", "SoftAssignmentPooling"]
