"""Drop-in layers and losses on the operators of ``cmi_fast.functional``."""

from cmi_fast.nn.capsules import CapsuleRouting
from cmi_fast.nn.gru import GRU
from cmi_fast.nn.interests import HardAssignmentPooling, IntentionClustering, SelfAttentivePooling
from cmi_fast.nn.losses import InterestSoftmaxLoss, NTXentLoss
from cmi_fast.nn.pooling import SoftAssignmentPooling
from cmi_fast.nn.read_out import LabelAwareAttention, SampledSoftmaxLoss, hard_read_out

__all__ = [
    "GRU",
    "CapsuleRouting",
    "HardAssignmentPooling",
    "IntentionClustering",
    "InterestSoftmaxLoss",
    "LabelAwareAttention",
    "NTXentLoss",
    "SampledSoftmaxLoss",
    "SelfAttentivePooling",
    "SoftAssignmentPooling",
    "hard_read_out",
]
