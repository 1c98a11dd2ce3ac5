"""``metrics.json`` as training wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from cmi_fast.data.plays import one_line
from cmi_fast.errors import InputError
from cmi_fast.evaluation import CUTOFFS
from cmi_fast.systems import NAMES

KEYS = {f"{metric}@{k}" for metric in ("recall", "hitrate", "ndcg", "mrr", "coverage") for k in CUTOFFS}


def _complete(metrics: dict[str, float]) -> dict[str, float]:
    if not set(metrics) >= KEYS:
        raise ValueError(f"expected {', '.join(sorted(KEYS))}")
    return metrics


def _known(model: str) -> str:
    if model not in NAMES:
        raise ValueError(f"expected one of {', '.join(NAMES)}")
    return model


Part = Annotated[dict[str, pydantic.FiniteFloat], pydantic.AfterValidator(_complete)]


class _Epoch(pydantic.BaseModel):
    losses: dict[str, pydantic.FiniteFloat]
    valid: Part
    seconds: pydantic.FiniteFloat


class _Baseline(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")  # what was chosen on valid

    valid: Part
    test: Part | None = None


class _Categories(pydantic.BaseModel):
    file: str | None = None


class _Metrics(pydantic.BaseModel):
    model: Annotated[str, pydantic.AfterValidator(_known)]
    valid: Part
    test: Part | None = None
    baselines: dict[Annotated[str, pydantic.AfterValidator(_known)], _Baseline]
    policy: dict[str, str]
    best_epoch: int
    epochs: Annotated[list[_Epoch], pydantic.Field(min_length=1)]
    categories: _Categories | None = None


def read_metrics(path: Path) -> dict[str, Any]:
    """The metrics of a run. Raises InputError where there are none, or others than training writes."""
    if not path.exists():
        raise InputError(f"{path}: found none; they are written when training ends (cmi-fast train --resume)")
    try:
        return _Metrics.model_validate_json(path.read_bytes()).model_dump(exclude_none=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{path}: not as training writes it: {where}: {first['msg']}") from None
