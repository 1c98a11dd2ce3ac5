"""The settings of a run: defaults, a TOML file, ``--set key=value``, in that order."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import pydantic
import tomli_w

from cmi_fast.data.interactions import Interactions
from cmi_fast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def file_name(path: Path) -> str:
    """``path`` as text that TOML can hold: itself, or a file: address where it is no UTF-8."""
    name = str(path.resolve())
    try:
        name.encode()
    except UnicodeEncodeError:
        return path.resolve().as_uri()
    return name


def file_of(name: str) -> Path:
    """The path that :func:`file_name` wrote."""
    scheme = "file://"
    return Path(os.fsdecode(unquote_to_bytes(name.removeprefix(scheme)))) if name.startswith(scheme) else Path(name)


class Source(pydantic.BaseModel):
    """A log and how it is read and split, as ``Interactions.read`` and ``split`` say."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    path: str
    where: str | None = None
    positive: list[str] = []
    columns: dict[str, str] = {}
    time_zone: str = "UTC"
    split: str = "day"
    last_day: int | None = None  # later plays are left out

    def read(self) -> Interactions:
        interactions = Interactions.read(
            file_of(self.path),
            where=self.where,
            positive=self.positive,
            columns=self.columns,
            time_zone=self.time_zone,
        )
        return interactions if self.last_day is None else interactions.subset(interactions.days <= self.last_day)


class Config(pydantic.BaseModel):
    """Every setting of training. Symbols are the paper's."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    model: Literal["cmi", "cmi-authors", "comirec-dr", "comirec-sa", "dssrec", "mind", "octopus"] = "cmi"
    data: Source | None = None

    interests: int = pydantic.Field(8, ge=1, le=64, description="m, latent categories and interests")
    dim: int = pydantic.Field(64, ge=1, le=4096, description="d, size of every vector")
    temperature: float = pydantic.Field(0.1, ge=1e-5, description="epsilon, of the assignment and the scores")
    general_interest: bool = pydantic.Field(True, description="add the GRU's interest; false is CMI-G")
    contrastive_weight: float = pydantic.Field(0.01, ge=0, description="lambda_cl; 0 is CMI-CL")
    contrastive_temperature: float = pydantic.Field(0.1, ge=1e-5, description="tau")
    orthogonality_weight: float = pydantic.Field(10.0, ge=0, description="lambda_orth")
    unit_interests: bool = pydantic.Field(True, description="interests at unit norm; false is the paper's text")
    general_in_retrieval: bool = pydantic.Field(
        True, description="rank by the score that is trained; false, the paper's text, by the cosine of the interests"
    )
    share_weight: float = pydantic.Field(
        0.0, ge=0, description="times the log of a category's share of the history is added to its interest's score"
    )
    assignment_temperature: float | None = pydantic.Field(
        None, ge=1e-5, description="of the assignment alone, instead of epsilon"
    )
    first_assignment_temperature: float | None = pydantic.Field(
        None, ge=1e-5, description="what it is in the first step; without, it is constant"
    )
    annealing_steps: int = pydantic.Field(1000, ge=1, description="until it has reached its last value")
    recent_weight: float = pydantic.Field(
        0.5, ge=0, description="in ranking, times log(1 + plays on the last three training days) is added to the score"
    )
    logq_correction: bool = pydantic.Field(True, description="take the candidates' frequency from the scores")
    disjoint_views: bool = pydantic.Field(False, description="views are the halves of a split, as in the authors' code")
    view_share: float = pydantic.Field(0.5, gt=0, le=1, description="mu, share of the history in a view")
    max_history: int = pydantic.Field(100, ge=1, le=2**20, description="f, most recent plays that are read")

    batch_size: int = pydantic.Field(128, ge=1, le=2**16, description="|B|, samples a step")
    optimizer: Literal["adam", "lazy-adam"] = pydantic.Field(
        "adam", description="lazy-adam updates only the items in a batch: another optimiser, for millions of items"
    )
    precision: Literal["float32", "bf16"] = pydantic.Field(
        "float32", description="bf16: autocast to bfloat16; weights, sums and losses stay float32"
    )
    lr: float = pydantic.Field(3e-3, gt=0, description="Adam's learning rate")
    weight_decay: float = pydantic.Field(0.0, ge=0, description="Adam's, added to the gradients; not of lazy-adam")
    epochs: int = pydantic.Field(30, ge=1, le=10**6, description="at most this many")
    steps_per_epoch: int | None = pydantic.Field(None, ge=1, description="instead of one pass over all samples")
    samples_per_user: int | None = pydantic.Field(None, ge=1, description="in one pass, instead of all")
    average_epochs: int = pydantic.Field(1, ge=1, description="judge and keep the mean weights of the last epochs")
    patience: int = pydantic.Field(5, ge=1, description="epochs without a better valid Recall@50")
    seed: int = pydantic.Field(0, ge=0, lt=2**63, description="of initialisation and sampling")

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))


PRESETS: dict[str, dict[str, Any]] = {
    # The text to the letter, where docs/model.md says that the default departs from it.
    "paper": {
        "unit_interests": False,
        "general_in_retrieval": False,
        "recent_weight": 0.0,
        "logq_correction": False,
        "batch_size": 1024,
        "lr": 1e-3,
    },
    # What the authors' code trains, and how: an "epoch" is 1,000 batches.
    "authors": {
        "model": "cmi-authors",
        "disjoint_views": True,
        "recent_weight": 0.0,
        "weight_decay": 1e-4,
        "batch_size": 1024,
        "lr": 1e-3,
        "steps_per_epoch": 1000,
        "epochs": 1000,
        "patience": 10,
    },
}


def load_config(
    path: Path | None = None, settings: Sequence[str] = (), *, preset: str | None = None, **options: str | None
) -> Config:
    """Defaults, overridden by one of :data:`PRESETS`, by the TOML file ``path``, by ``settings`` (``"key=value"``), and
    by ``options``, those of the command line that have a name of their own; None stands for one that was not given.

    Raises:
        InputError: the file cannot be read, a key is unknown or a value out of range; the message names which.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {preset}: expected {' or '.join(PRESETS)}")
    values = dict(PRESETS[preset]) if preset is not None else {}
    if path is not None:
        read = _read_toml(path)
        _validate(read, str(path))
        values |= read
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {setting}: expected key=value")
        if key.strip() == "data":
            raise InputError("--set data: the log is an argument of its own, its filter is --where")
        values[key.strip()] = _parse(text.strip())
    config = _validate(values, "--set")
    for name, value in options.items():
        if value is not None:
            config = _validate({**config.model_dump(), name: value}, f"--{name}")
    return config


def make_config(**settings: Any) -> Config:
    """Defaults, overridden by keyword. Raises InputError for an unknown key or a value out of range."""
    return _validate(settings, "settings")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a TOML text file, found binary data") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: no valid TOML ({error})") from None


def _parse(text: str) -> Any:
    """A TOML value, or the text itself where it is none (``model=cmi``)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _validate(values: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: unknown key {key!r}; known keys: {', '.join(Config.model_fields)}") from None
        message = first["msg"][0].lower() + first["msg"][1:]
        found = f"{source} {first['input']}" if source == f"--{key}" else f"{source}: {key} = {first['input']!r}"
        raise InputError(f"{found}: {message}") from None
