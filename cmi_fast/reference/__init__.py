"""Every operator as its formula in plain PyTorch: written to be read, exact in float64, twice differentiable."""

from cmi_fast.reference.capsule_routing import capsule_routing
from cmi_fast.reference.gru import gru
from cmi_fast.reference.interest_softmax_loss import interest_softmax_loss
from cmi_fast.reference.item_gru import item_gru
from cmi_fast.reference.item_soft_assignment_pool import item_soft_assignment_pool
from cmi_fast.reference.nt_xent_loss import nt_xent_loss
from cmi_fast.reference.orthogonality_loss import orthogonality_loss
from cmi_fast.reference.self_attentive_pool import self_attentive_pool
from cmi_fast.reference.soft_assignment_pool import soft_assignment_pool
from cmi_fast.reference.top_k import top_k

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
    "top_k",
]
