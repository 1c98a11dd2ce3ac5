"""The models by name, each made from a run's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmi_fast.models import CMI, MIND, ComiRecDR, ComiRecSA, DSSRec, MultiInterestModel, Octopus

if TYPE_CHECKING:
    from cmi_fast.training.config import Config


def _cmi(config: Config, **options: Any) -> MultiInterestModel:
    names = (
        "general_interest",
        "unit_interests",
        "general_in_retrieval",
        "share_weight",
        "assignment_temperature",
        "first_assignment_temperature",
        "annealing_steps",
    )
    return CMI(**options, **_cmi_options(config), **{name: getattr(config, name) for name in names})


def _authors_cmi(config: Config, *, frequency: Tensor | None, **options: Any) -> MultiInterestModel:
    return CMI.authors(**options, **_cmi_options(config))  # their code has no logQ


def _cmi_options(config: Config) -> dict[str, Any]:
    names = "temperature", "contrastive_weight", "contrastive_temperature", "orthogonality_weight"
    return {name: getattr(config, name) for name in names}


def _with_history(model: Callable[..., MultiInterestModel]) -> Callable[..., MultiInterestModel]:
    """Models whose parameters depend on the longest history."""
    return lambda config, **options: model(**options, max_history=config.max_history)


MODELS: dict[str, Callable[..., MultiInterestModel]] = {
    "cmi": _cmi,
    "cmi-authors": _authors_cmi,
    "comirec-dr": _with_history(ComiRecDR),
    "comirec-sa": _with_history(ComiRecSA),
    "dssrec": _with_history(DSSRec),
    "mind": _with_history(MIND),
    "octopus": lambda config, **options: Octopus(**options),
}


def make_model(config: Config, num_items: int, frequency: Tensor | None) -> MultiInterestModel:
    """The model that ``config`` names; ``frequency`` as in :class:`MultiInterestModel`."""
    return MODELS[config.model](
        config,
        num_items=num_items,
        interests=config.interests,
        dim=config.dim,
        frequency=frequency if config.logq_correction else None,
    )
