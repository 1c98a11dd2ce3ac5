"""CMI and the models it is compared with, on one protocol: :class:`MultiInterestModel`."""

from cmi_fast.models.base import MultiInterestModel
from cmi_fast.models.cmi import CMI
from cmi_fast.models.comirec import ComiRecDR, ComiRecSA
from cmi_fast.models.dssrec import DSSRec
from cmi_fast.models.mind import MIND
from cmi_fast.models.octopus import Octopus

__all__ = ["CMI", "MIND", "ComiRecDR", "ComiRecSA", "DSSRec", "MultiInterestModel", "Octopus"]
