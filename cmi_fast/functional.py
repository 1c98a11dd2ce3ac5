"""The operators."""

from cmi_fast.ops.capsule_routing import capsule_routing
from cmi_fast.ops.gru import gru
from cmi_fast.ops.interest_softmax_loss import interest_softmax_loss
from cmi_fast.ops.item_gru import item_gru
from cmi_fast.ops.item_soft_assignment_pool import item_soft_assignment_pool
from cmi_fast.ops.nt_xent_loss import nt_xent_loss
from cmi_fast.ops.orthogonality_loss import orthogonality_loss
from cmi_fast.ops.self_attentive_pool import self_attentive_pool
from cmi_fast.ops.soft_assignment_pool import soft_assignment_pool

__all__ = [
    "capsule_routing",
    "gru",
    "interest_softmax_loss",
    "item_gru",
    "item_soft_assignment_pool",
    "nt_xent_loss",
    "orthogonality_loss",
    "self_attentive_pool",
    "soft_assignment_pool",
]
